//! `modules.jsonl`: which part of each module's update the penalty sees, step by step.

use crate::support::command::{asft, json, succeeds, train};
use crate::support::files::read_json_lines;
use crate::support::runs::same_metrics;
use serde_json::Value;
use std::path::Path;

fn modules(dir: &Path) -> Vec<Value> {
    read_json_lines(&dir.join("modules.jsonl"))
}

#[test]
fn modules_are_measured_penalised_or_not() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = |name: &str| scratch.path().join(name);
    let log = "output.log_modules_every=16";
    succeeds(train(&dir("plain"), &["asft.penalize=none", log], &[]));
    let plain = modules(&dir("plain"));
    // q and v of three layers, at steps 16, 32 and 48.
    assert_eq!(plain.len(), 18);
    for row in &plain {
        let value = |key: &str| row[key].as_f64().unwrap();
        assert!(value("norm") > 0.1 && (0.0..=1.0).contains(&value("orthogonal")), "{row}");
        assert!(value("aligned") > 0.0 && value("signed").abs() < value("aligned").sqrt(), "{row}");
        assert!(row.get("gradient_ratio").is_none(), "{row}");
    }
    succeeds(train(&dir("held"), &["asft.lambda=10", log], &[]));
    let held = modules(&dir("held"));
    let norms = |rows: &[Value]| rows.iter().map(|row| row["norm"].as_f64().unwrap()).sum::<f64>();
    assert!(norms(&held) < 0.5 * norms(&plain));
    assert!(held.iter().all(|row| row["gradient_ratio"].as_f64().unwrap() > 0.01), "{held:?}");
    // `asft inspect` says the same of the adapter, which the last step, at a rate of almost zero, hardly moved.
    let mut inspect = asft(&["inspect", "--json", "--adapter"]);
    inspect.arg(dir("plain").join("adapter")).arg("--direction").arg(dir("plain").join("direction.safetensors"));
    let inspected = json(inspect);
    for row in &plain[12..] {
        let of_adapter = inspected["modules"].as_array().unwrap();
        let same = of_adapter.iter().find(|module| module["module"] == row["module"]).unwrap();
        for key in ["norm", "aligned", "orthogonal", "signed"] {
            let (one, other) = (row[key].as_f64().unwrap(), same[key].as_f64().unwrap());
            assert!((one - other).abs() < 1e-3 * other.abs().max(0.1), "{key}: {row} {same}");
        }
    }
    // Where the models are equal, nothing is aligned.
    let sets = ["asft.penalize=all", log, "train.max_steps=16", "model.unaligned=tests/tiny/aligned"];
    succeeds(train(&dir("flat"), &sets, &[]));
    let flat = &modules(&dir("flat"))[0];
    assert_eq!((flat["aligned"].as_f64(), flat["orthogonal"].as_f64()), (Some(0.0), Some(1.0)));
    // Measuring changes nothing.
    succeeds(train(&dir("unmeasured"), &["asft.lambda=10"], &[]));
    same_metrics(&dir("unmeasured"), &dir("held"));
}

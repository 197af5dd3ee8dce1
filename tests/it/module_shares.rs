//! `modules.jsonl`: what each module's update consists of, step by step; and that `asft inspect` and `run.json` mean the same.

use crate::support::command::{asft, json, succeeds, train};
use crate::support::files::{read_json, read_json_lines};
use crate::support::runs::same_metrics;
use serde_json::Value;
use std::path::Path;

fn modules(dir: &Path) -> Vec<Value> {
    read_json_lines(&dir.join("modules.jsonl"))
}

/// What `asft inspect` says of a run's result: of its adapter, or of its whole model.
fn inspected(dir: &Path) -> Value {
    let mut inspect = asft(&["inspect", "--json", "--direction"]);
    inspect.arg(dir.join("direction.safetensors"));
    match dir.join("adapter") {
        adapter if adapter.is_dir() => inspect.arg("--adapter").arg(adapter),
        _ => inspect.args(["--base", "tests/tiny/aligned", "--model"]).arg(dir.join("model")),
    };
    json(inspect)["modules"].take()
}

/// The row of `all` about the module that `row` is about.
fn of_module<'a>(row: &Value, all: &'a Value) -> &'a Value {
    all.as_array().unwrap().iter().find(|other| other["module"] == row["module"]).unwrap()
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
    let inspected = inspected(&dir("plain"));
    for row in &plain[12..] {
        let same = of_module(row, &inspected);
        for key in ["norm", "aligned", "orthogonal", "signed"] {
            let (one, other) = (row[key].as_f64().unwrap(), same[key].as_f64().unwrap());
            assert!((one - other).abs() < 1e-3 * other.abs().max(0.1), "{key}: {row} {same}");
        }
    }
    // Where the models are equal, there is nothing to be aligned with.
    let sets = ["asft.penalize=all", log, "train.max_steps=16", "model.unaligned=tests/tiny/aligned"];
    succeeds(train(&dir("flat"), &sets, &[]));
    let flat = &modules(&dir("flat"))[0];
    assert!(flat["norm"].as_f64() > Some(0.0), "{flat}");
    assert!(["aligned", "orthogonal", "signed"].iter().all(|key| flat.get(key).is_none()), "{flat}");
    // Measuring changes nothing.
    succeeds(train(&dir("unmeasured"), &["asft.lambda=10"], &[]));
    same_metrics(&dir("unmeasured"), &dir("held"));
}

#[test]
fn shares_mean_the_same_in_a_log_a_record_and_an_inspection_under_every_projector() {
    let scratch = tempfile::tempdir().unwrap();
    let cases: [&[&str]; 7] = [
        &["asft.projector=released"],
        &["asft.projector=subspace"],
        &["asft.projector=subspace", "asft.subspace_rank=2", "asft.penalize=orthogonal+reverse"],
        &["asft.projector=random", "asft.projector_seed=3", "asft.penalize=orthogonal+reverse"],
        &["asft.projector=random", "train.method=full", "train.learning_rate=1e-3"],
        &["asft.penalize=input", "asft.input_mix=0.3"],
        &["asft.penalize=input", "asft.projector=random", "train.method=full", "train.learning_rate=1e-3"],
    ];
    for (case, projector) in cases.into_iter().enumerate() {
        let run = |steps: usize, log: &[&str]| {
            let dir = scratch.path().join(format!("{case}-{steps}"));
            let steps = format!("train.max_steps={steps}");
            let sets = [projector, &["train.schedule=constant", "asft.lambda=0.1", &steps], log].concat();
            succeeds(train(&dir, &sets, &[]));
            dir
        };
        // The row before the ninth step is that of what eight steps leave.
        let (result, logged) = (run(8, &[]), run(9, &["output.log_modules_every=9"]));
        let (rows, inspected) = (modules(&logged), inspected(&result));
        let record = read_json(&result.join("run.json"));
        assert_eq!((rows.len(), inspected.as_array().unwrap().len()), (6, 6));
        for row in &rows {
            let (same, norms) = (of_module(row, &inspected), of_module(row, &record["update_norms"]));
            let near = |key: &str, other: f64| {
                let one = row[key].as_f64().unwrap();
                assert!((one - other).abs() < 1e-6 * other.abs(), "{projector:?} {key}: {row} {same} {norms}");
            };
            let shares = ["aligned", "orthogonal", "subspace_aligned", "subspace_orthogonal", "input", "signed"];
            for key in ["norm"].into_iter().chain(shares) {
                near(key, same[key].as_f64().unwrap());
            }
            for (key, part) in [("aligned", "parallel"), ("orthogonal", "orthogonal")] {
                near(key, norms[part].as_f64().unwrap() / norms["norm"].as_f64().unwrap());
            }
        }
    }
}

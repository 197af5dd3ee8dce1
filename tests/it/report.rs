//! The report of a run: one page that needs nothing else.

use crate::support::command::{asft, refused, succeeds, train};
use crate::support::files::read_json;

#[test]
fn a_run_ends_with_a_report() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    succeeds(train(&dir, &["train.max_steps=4", "data.validation=0.1"], &[]));
    let html = std::fs::read_to_string(dir.join("report.html")).unwrap();
    for part in ["<!doctype html>", "validation loss", "q_proj", "orthogonal", "max_steps = 4", "0.11.1"] {
        assert!(html.contains(part), "{part}");
    }
    assert!(!html.contains("<script") && !html.contains("http"));
    for name in ["metrics.jsonl", "config.toml", "run.json", "adapter/", "direction.safetensors"] {
        assert!(html.contains(&format!("<a href=\"{name}\">")) && dir.join(name).exists(), "{name}");
    }
    for told in ["training samples", "validation samples", "label tokens", "<title>step 1, epoch 0.", ">epoch</text>"] {
        assert!(html.contains(told), "{told}");
    }
    // ‖(I − C)ΔW‖² over all modules is the penalty's last value over λ, one step on.
    let record = read_json(&dir.join("run.json"));
    let norms = record["update_norms"].as_array().unwrap();
    assert_eq!(norms.len(), 6);
    let samples = |set: &str| record["samples"][set].as_u64().unwrap();
    assert_eq!(samples("train") + samples("validation"), 96);
    for norm in norms {
        let number = |key: &str| norm[key].as_f64().unwrap();
        let (whole, parallel, orthogonal) = (number("norm"), number("parallel"), number("orthogonal"));
        assert!(parallel > 0.0 && orthogonal > 0.0 && whole <= parallel + orthogonal + 1e-9, "{norm}");
    }
    // The same again from the folder, and elsewhere, where links lead back.
    let other = scratch.path().join("other.html");
    succeeds(asft(&["report"]).arg(&dir).arg("--out").arg(&other));
    assert_eq!(std::fs::read_to_string(other).unwrap(), html.replace("<a href=\"", "<a href=\"run/"));
    refused(asft(&["report", "tests"]), &["not a run's folder", "metrics.jsonl"]);
    // Plain shrinkage has no direction, and so no parts.
    let sets = ["train.max_steps=2", "asft.penalize=all"];
    succeeds(train(&dir, &sets, &["--overwrite"]));
    let norm = &read_json(&dir.join("run.json"))["update_norms"][0];
    assert!(norm["parallel"].is_null() && norm["norm"].as_f64() > Some(0.0), "{norm}");
    succeeds(train(&dir, &["train.max_steps=2", "train.method=full"], &["--overwrite"]));
    assert_eq!(read_json(&dir.join("run.json"))["update_norms"].as_array().unwrap().len(), 6);
}

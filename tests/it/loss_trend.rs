//! Where the loss of a run went, as its messages, its record and its page tell it.

use crate::support::command::{succeeds, train};
use crate::support::files::read_json;
use crate::support::runs::metrics;
use serde_json::Value;
use std::path::Path;

const WARNING: &str = "warning: step ";
const ENDED: &str = "warning: the loss ended far above its start";

/// `loss` of run.json, and the page.
fn told(dir: &Path) -> (Value, String) {
    (read_json(&dir.join("run.json"))["loss"].clone(), std::fs::read_to_string(dir.join("report.html")).unwrap())
}

#[test]
fn a_run_that_diverges_says_so() {
    let scratch = tempfile::tempdir().unwrap();
    for set in ["train.learning_rate=5", "asft.lambda=1e9"] {
        let dir = scratch.path().join(set);
        let text = succeeds(train(&dir, &[set, "train.max_steps=26"], &["--quiet"]));
        assert_eq!((text.matches(WARNING).count(), text.matches(ENDED).count()), (1, 1), "{set}: {text}");
        let (loss, page) = told(&dir);
        let first = metrics(&dir)[0]["loss"].as_f64().unwrap();
        assert!(loss["above_start"] == true && loss["last"].as_f64() > Some(10.0 * first), "{set}: {loss} {first}");
        assert!(page.contains("<p class=\"warning\">The loss ended far above its start"), "{set}");
    }
}

#[test]
fn a_run_that_learns_has_its_means_in_the_record_and_on_the_page() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let text = succeeds(train(&dir, &[], &[]));
    assert!(!text.contains("warning"), "{text}");
    let (loss, page) = told(&dir);
    let losses: Vec<f64> = metrics(&dir).iter().filter_map(|row| row["loss"].as_f64()).collect();
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    // A fifth of the 48 steps at either end.
    assert_eq!((losses.len(), &loss["steps"], &loss["above_start"]), (48, &9.into(), &false.into()));
    for (key, expected) in [("first", mean(&losses[..9])), ("last", mean(&losses[39..]))] {
        assert!((loss[key].as_f64().unwrap() - expected).abs() < 1e-12, "{key}: {loss}, expected {expected}");
    }
    assert!(!page.contains("class=\"warning\"") && page.contains("<dt>loss, means of 9 steps</dt>"));
}

//! What is done with a direction file besides training: `asft project`, `asft inspect` and `asft landscape`, against
//! goldens of the literal formulas (see `tests/fixtures/make/project.py`), and one clear error for each kind of bad
//! input.

mod inspect;
mod landscape;
mod project;
mod refusals;

use crate::support::command::{asft, evaluation, json, succeeds, text};
use crate::support::files::{fixture, tiny};
use crate::support::goldens::Golden;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const TOLERANCE: f64 = 1e-5;
const ALL: &str = "q_proj,v_proj,o_proj,down_proj";

/// A scratch folder with a full-rank direction in it.
fn with_direction(aligned: &Path, unaligned: &Path, targets: &str) -> (TempDir, PathBuf) {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("direction.safetensors");
    let pair = ["direction", "--aligned", text(aligned), "--unaligned", text(unaligned), "--out", text(&path)];
    succeeds(asft(&pair).args(["--tolerance", "0", "--target-modules", targets]));
    (scratch, path)
}

fn golden_direction() -> (TempDir, PathBuf) {
    with_direction(&fixture("llama_gqa").join("model"), &fixture("llama_gqa").join("unaligned"), ALL)
}

fn tiny_direction() -> (TempDir, PathBuf) {
    with_direction(&tiny("aligned"), &tiny("unaligned"), "q_proj,v_proj")
}

fn golden() -> Golden {
    Golden::load(&fixture("project").join("expected.safetensors"))
}

/// Rows of a report by module.
fn by_module(report: &Value) -> BTreeMap<&str, &Value> {
    report["modules"].as_array().unwrap().iter().map(|m| (m["module"].as_str().unwrap(), m)).collect()
}

#[track_caller]
fn near(what: &str, got: &Value, expected: f64) {
    let got = got.as_f64().unwrap_or_else(|| panic!("{what}: {got}"));
    assert!((got - expected).abs() <= TOLERANCE * expected.abs().max(1.0), "{what}: {got} instead of {expected}");
}

//! The folder that a run leaves.

use super::files::read_json_lines;
use serde_json::Value;
use std::path::Path;

/// The weights of a run, by `train.method`.
pub const WEIGHTS: [(&str, &str); 2] =
    [("lora", "adapter/adapter_model.safetensors"), ("full", "model/model.safetensors")];

/// What depends on the clock and the machine in a row of `metrics.jsonl`.
pub const TIMING: [&str; 3] = ["tokens_per_second", "elapsed_seconds", "peak_memory_bytes"];

/// Every row of `metrics.jsonl`.
#[track_caller]
pub fn metrics(dir: &Path) -> Vec<Value> {
    read_json_lines(&dir.join("metrics.jsonl"))
}

/// The rows that a running run has written completely.
pub fn metrics_so_far(dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// `metrics.jsonl` without what depends on the clock.
#[track_caller]
pub fn timeless(dir: &Path) -> Vec<Value> {
    let mut rows = metrics(dir);
    for row in &mut rows {
        TIMING.iter().for_each(|key| drop(row.as_object_mut().unwrap().shift_remove(*key)));
    }
    rows
}

/// Asserts that two runs have bit for bit the same metrics, in the same order.
#[track_caller]
pub fn same_metrics(one: &Path, other: &Path) {
    let text = |dir: &Path| timeless(dir).iter().map(|row| format!("{row}\n")).collect::<String>();
    assert_eq!(text(one), text(other));
}

/// Asserts that two runs have bit for bit the same metrics and the same file `weights`.
#[track_caller]
pub fn same_run(one: &Path, other: &Path, weights: &str) {
    same_metrics(one, other);
    same_file(one, other, weights);
}

/// Asserts that a file is the same in two folders.
#[track_caller]
pub fn same_file(one: &Path, other: &Path, name: &str) {
    assert!(std::fs::read(one.join(name)).unwrap() == std::fs::read(other.join(name)).unwrap(), "{name}");
}

/// Makes a finished run look as if it had been killed before its end, without its result and its last checkpoints.
pub fn interrupt(dir: &Path, result: &str, steps: &[usize]) {
    std::fs::remove_file(dir.join("run.json")).unwrap();
    std::fs::remove_dir_all(dir.join(result)).unwrap();
    for step in steps {
        std::fs::remove_dir_all(dir.join(format!("checkpoints/step-{step}"))).unwrap();
    }
}

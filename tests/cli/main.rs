//! The binary as a user runs it: a whole run, and one clear error for each kind of bad input.

#[path = "../common/mod.rs"]
mod common;
mod data;
mod refusals;
mod runs;

use assert_cmd::Command;
use common::fixture;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn asft() -> Command {
    let mut command = Command::cargo_bin("asft").unwrap();
    // No test may wait for a network.
    command.current_dir(root()).env("HF_HUB_OFFLINE", "1").env_remove("ASFT_THREADS");
    command
}

/// A run of the tiny config into `dir`, with further overrides.
fn train(dir: &Path, overrides: &[&str]) -> Command {
    let mut command = asft();
    command.args(["train", "--config", "configs/tiny.toml", "--set"]).arg(format!("output.dir={}", dir.display()));
    for set in overrides {
        command.args(["--set", set]);
    }
    command
}

/// Asserts exit code 2, a single `error:` line with all of `needles`, and nothing written under `scratch`.
#[track_caller]
fn refused(mut command: Command, scratch: &TempDir, needles: &[&str]) {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    for needle in needles {
        assert!(stderr.contains(needle), "no `{needle}` in: {stderr}");
    }
    assert!(!scratch.path().join("run").exists(), "a refused run wrote its output folder");
}

fn rows(dir: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A copy of the tiny model with one file changed by `change`.
fn damaged(scratch: &TempDir, change: impl Fn(&Path)) -> String {
    let dir = scratch.path().join("model");
    std::fs::create_dir_all(&dir).unwrap();
    for entry in std::fs::read_dir(root().join("tests/tiny/aligned")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
    }
    change(&dir);
    format!("model.aligned={}", dir.display())
}

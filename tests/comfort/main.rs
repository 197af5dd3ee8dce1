//! What makes a run pleasant, through the real binary: log lines, TensorBoard files, the report, and what asft says of
//! itself.

mod about;
mod adapters;
#[path = "../common/mod.rs"]
mod common;
mod follow;

use assert_cmd::Command;
use common::fixture;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn asft(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("asft").unwrap();
    command.current_dir(root()).env("HF_HUB_OFFLINE", "1").args(args);
    command
}

fn train(dir: &Path, sets: &[&str], flags: &[&str]) -> Command {
    let mut command = asft(&["train", "--config", "configs/tiny.toml", "--set"]);
    command.arg(format!("output.dir={}", dir.display()));
    for set in sets {
        command.args(["--set", set]);
    }
    command.args(flags);
    command
}

/// Exit code and stderr.
fn run(mut command: Command) -> (i32, String) {
    let output = command.output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[track_caller]
fn succeeds(command: Command) -> String {
    let (code, stderr) = run(command);
    assert_eq!(code, 0, "{stderr}");
    stderr
}

#[track_caller]
fn refused(command: Command, needles: &[&str]) {
    let (code, stderr) = run(command);
    assert_eq!(code, 2, "{stderr}");
    for needle in needles {
        assert!(stderr.contains(needle), "no `{needle}` in: {stderr}");
    }
}

fn json_file(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

//! The program as a user runs it, and how it ends.

use super::files::root;
use serde_json::Value;
use std::borrow::BorrowMut;
use std::path::Path;
use std::process::{Command, Output};

/// Where the program is.
pub const ASFT: &str = env!("CARGO_BIN_EXE_asft");

/// The program with these arguments, run in the repository's folder.
pub fn asft(arguments: &[&str]) -> Command {
    let mut command = Command::new(ASFT);
    // No test may wait for a network.
    command.current_dir(root()).env("HF_HUB_OFFLINE", "1").args(arguments);
    command
}

/// Settings in place of the config's.
pub fn set(command: &mut Command, sets: &[&str]) {
    for set in sets {
        command.args(["--set", set]);
    }
}

/// The arguments of a run of the tiny config into `dir`.
pub fn train_arguments(command: &mut Command, dir: &Path, sets: &[&str], flags: &[&str]) {
    command.args(["train", "--config", "configs/tiny.toml"]);
    set(command, &[&format!("output.dir={}", dir.display())]);
    set(command, sets);
    command.args(flags);
}

/// A run of the tiny config into `dir`.
pub fn train(dir: &Path, sets: &[&str], flags: &[&str]) -> Command {
    let mut command = asft(&[]);
    train_arguments(&mut command, dir, sets, flags);
    command
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts the exit code, and that standard error, which is returned, has all of `needles`.
#[track_caller]
pub fn ends(mut command: impl BorrowMut<Command>, code: i32, needles: &[&str]) -> String {
    let output = command.borrow_mut().output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for needle in needles {
        assert!(text.contains(needle), "no `{needle}` in: {text}");
    }
    text
}

/// As [`ends`], for a command that succeeds.
#[track_caller]
pub fn succeeds(command: impl BorrowMut<Command>) -> String {
    ends(command, 0, &[])
}

/// As [`ends`], with a single `error` line.
#[track_caller]
pub fn fails(command: impl BorrowMut<Command>, code: i32, needles: &[&str]) -> String {
    let text = ends(command, code, needles);
    assert_eq!(text.lines().filter(|line| line.starts_with("error")).count(), 1, "{text}");
    text
}

/// As [`fails`], for what the user can fix.
#[track_caller]
pub fn refused(command: impl BorrowMut<Command>, needles: &[&str]) -> String {
    fails(command, 2, needles)
}

/// As [`refused`], before there is anything in the output folder `dir`.
#[track_caller]
pub fn refused_unwritten(command: impl BorrowMut<Command>, dir: &Path, needles: &[&str]) -> String {
    let text = refused(command, needles);
    assert!(!dir.exists(), "a refused run wrote its output folder");
    text
}

/// What it prints, if it succeeds.
#[track_caller]
pub fn stdout(mut command: impl BorrowMut<Command>) -> String {
    let output = command.borrow_mut().output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// The JSON that it prints, if it succeeds.
#[track_caller]
pub fn json(command: impl BorrowMut<Command>) -> Value {
    serde_json::from_str(&stdout(command)).unwrap()
}

/// The one evaluation of one model that `asft eval --json` prints.
#[track_caller]
pub fn evaluation(command: impl BorrowMut<Command>) -> Value {
    json(command)["models"][0]["evaluations"][0].clone()
}

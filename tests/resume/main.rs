//! Runs that are stopped, killed, starved and changed, and go on: the real binary on the tiny model.

mod change;
mod check;
mod damage;
mod disk;
mod keep;
mod kill;
mod same;
mod stop;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// All that a resumed run could get wrong at once: dropout, packing, accumulation, shuffling, validation.
const EVERYTHING: [&str; 10] = [
    "lora.dropout=0.1",
    "data.packing=true",
    "data.max_length=64",
    "data.validation=0.1",
    "train.gradient_accumulation=2",
    "train.batch_size=2",
    "train.max_steps=60",
    "output.eval_every_steps=7",
    "output.save_every_steps=5",
    "train.weight_decay=0.1",
];
const TIMING: [&str; 3] = ["tokens_per_second", "elapsed_seconds", "peak_memory_bytes"];

/// `asft train` on the tiny config into `dir`.
fn train(dir: &Path, sets: &[&str], flags: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("asft"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("HF_HUB_OFFLINE", "1").env_remove("ASFT_THREADS");
    command.args(["train", "--config", "configs/tiny.toml", "--set"]).arg(format!("output.dir={}", dir.display()));
    for set in sets {
        command.args(["--set", set]);
    }
    command.args(flags);
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn ends(mut command: Command, code: i32, needles: &[&str]) -> String {
    let output = command.output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for needle in needles {
        assert!(text.contains(needle), "no `{needle}` in: {text}");
    }
    text
}

fn rows(dir: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// metrics.jsonl without what depends on the clock.
fn timeless(dir: &Path) -> String {
    let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let strip = |line: &str| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        TIMING.iter().for_each(|key| drop(row.as_object_mut().unwrap().shift_remove(*key)));
        row.to_string() + "\n"
    };
    text.lines().map(strip).collect()
}

#[track_caller]
fn same_run(one: &Path, other: &Path, weights: &str) {
    assert_eq!(timeless(one), timeless(other));
    assert!(std::fs::read(one.join(weights)).unwrap() == std::fs::read(other.join(weights)).unwrap(), "{weights}");
}

/// No temporary file or folder anywhere.
#[track_caller]
fn is_tidy(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        assert!(!path.file_name().unwrap().to_string_lossy().starts_with(".asft"), "{}", path.display());
        if path.is_dir() {
            is_tidy(&path);
        }
    }
}

fn checkpoints(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join("checkpoints")).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
}

/// Starts a run and signals it once it has written `steps` rows.
fn signalled_after(mut command: Command, dir: &Path, steps: usize, signals: &[Signal]) -> Output {
    let child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while rows(dir).len() < steps {
        assert!(began.elapsed() < Duration::from_secs(60), "no {steps} rows");
        std::thread::sleep(Duration::from_millis(1));
    }
    signals.iter().for_each(|&number| signal(&child, number));
    child.wait_with_output().unwrap()
}

fn path(scratch: &tempfile::TempDir, name: &str) -> PathBuf {
    scratch.path().join(name)
}

/// A finished run of 12 steps made to look as if it had been killed before its end: checkpoints after 5 and 10.
fn interrupted(dir: &Path, more: &[&str]) -> Vec<String> {
    let sets = [&EVERYTHING[..], &["train.max_steps=12", "output.keep_last=3"], more].concat();
    ends(train(dir, &sets, &[]), 0, &[]);
    std::fs::remove_file(dir.join("run.json")).unwrap();
    std::fs::remove_dir_all(dir.join("adapter")).unwrap();
    std::fs::remove_dir_all(dir.join("checkpoints/step-12")).unwrap();
    sets.iter().map(|set| set.to_string()).collect()
}

fn borrowed(sets: &[String]) -> Vec<&str> {
    sets.iter().map(String::as_str).collect()
}

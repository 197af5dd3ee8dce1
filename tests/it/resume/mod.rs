//! Runs that are stopped, killed, starved or changed, and continue: the real binary on the tiny model.

mod change;
mod check;
mod damage;
mod disk;
mod keep;
mod kill;
mod same;
mod stop;

use crate::support::command::{asft, ends, stderr, succeeds, train};
use crate::support::files::{copy_files, read_json, tiny};
use crate::support::runs::{WEIGHTS, interrupt, metrics, metrics_so_far, same_file, same_run, timeless};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
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
    while metrics_so_far(dir).len() < steps {
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
    succeeds(train(dir, &sets, &[]));
    interrupt(dir, "adapter", &[12]);
    sets.iter().map(|set| set.to_string()).collect()
}

fn borrowed(sets: &[String]) -> Vec<&str> {
    sets.iter().map(String::as_str).collect()
}

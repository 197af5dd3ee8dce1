//! Several processes that work as one: the real binary under mpirun, on one machine. Needs the `mpi` feature and Open MPI's
//! launcher.

#![cfg(feature = "mpi")]

mod support;

use candle_core::{Device, Tensor};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::command::{ASFT, asft, ends, stderr, train_arguments};
use support::files::{read_json, read_json_lines, root};
use support::runs::{TIMING, WEIGHTS, interrupt, metrics, metrics_so_far, same_file, same_run};
use support::tensors::{relative_error, to_vec};

/// All that could depend on how samples are distributed: dropout, packing, accumulation, uneven batches, clipping.
const EVERYTHING: [&str; 13] = [
    "lora.dropout=0.1",
    "data.packing=true",
    "data.max_length=64",
    "data.validation=0.1",
    "train.batch_size=5",
    "train.gradient_accumulation=3",
    "train.max_steps=24",
    "train.learning_rate=1e-3",
    "train.weight_decay=0.1",
    "train.max_grad_norm=0.5",
    "output.eval_every_steps=7",
    "output.save_every_steps=6",
    "output.log_modules_every=8",
];
/// Of a rank, by Open MPI.
const RANK: &str = "OMPI_COMM_WORLD_RANK=1";

/// `ranks` processes of the binary, or one without a launcher.
fn launched(ranks: usize) -> Command {
    let mut command = asft(&[]);
    if ranks > 1 {
        command = Command::new("mpirun");
        command.args(["--oversubscribe", "--bind-to", "none", "-n", &ranks.to_string()]).arg(ASFT);
        command.current_dir(root()).env("HF_HUB_OFFLINE", "1");
    }
    command.env_remove("RAYON_NUM_THREADS");
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command
}

fn run(ranks: usize, dir: &Path, sets: &[&str], flags: &[&str]) -> Command {
    let mut command = launched(ranks);
    train_arguments(&mut command, dir, sets, flags);
    command
}

fn tensors(dir: &Path, weights: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(dir.join(weights), &Device::Cpu).unwrap()
}

/// Whether numbers differ by at most `tolerance` of their size (cosines, of 1), and all else not at all.
#[track_caller]
fn close(one: &Value, other: &Value, tolerance: f64) {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            assert!(one.keys().eq(other.keys()), "{one:?} {other:?}");
            let pairs = one.iter().filter(|(key, _)| !TIMING.contains(&key.as_str()));
            for (key, value) in pairs {
                match (key.as_str(), value.as_f64(), other[key].as_f64()) {
                    ("signed", Some(a), Some(b)) => assert!((a - b).abs() <= tolerance, "{a} {b}"),
                    _ => close(value, &other[key], tolerance),
                }
            }
        }
        (Value::Array(one), Value::Array(other)) => {
            assert_eq!(one.len(), other.len());
            one.iter().zip(other).for_each(|(a, b)| close(a, b, tolerance));
        }
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            assert!((a - b).abs() <= tolerance * a.abs(), "{a} {b}");
        }
        _ => assert_eq!(one, other),
    }
}

/// Whether two runs have the same metrics and weights, to 1e-5.
#[track_caller]
fn same_results(one: &Path, other: &Path, weights: &str) {
    for file in ["metrics.jsonl", "modules.jsonl"] {
        // A run may have measured no modules.
        let rows = |dir: &Path| if dir.join(file).exists() { read_json_lines(&dir.join(file)) } else { vec![] };
        let (a, b) = (rows(one), rows(other));
        assert_eq!(a.len(), b.len(), "{file}");
        a.iter().zip(&b).for_each(|(a, b)| close(a, b, 1e-5));
    }
    let (a, b) = (tensors(one, weights), tensors(other, weights));
    assert_eq!(a.len(), b.len());
    for (name, tensor) in &a {
        let error = relative_error(&to_vec(&b[name]), &to_vec(tensor));
        assert!(error <= 1e-5, "{name}: {error}");
    }
}

#[test]
fn ranks_train_as_one_process() {
    for ((method, weights), counts) in WEIGHTS.into_iter().zip([&[2, 3, 4][..], &[2, 4]]) {
        let scratch = tempfile::tempdir().unwrap();
        let method = format!("train.method={method}");
        let sets = [&EVERYTHING[..], &[&method]].concat();
        let one = scratch.path().join("1");
        ends(run(1, &one, &sets, &[]), 0, &[]);
        let tokens: Vec<u64> = metrics(&one).iter().filter_map(|row| row["tokens"].as_u64()).collect();
        assert!(tokens.iter().min() < tokens.iter().max().map(|most| most * 8 / 10).as_ref(), "no uneven last batch");
        for &ranks in counts {
            let dir = scratch.path().join(ranks.to_string());
            let told = ends(
                run(ranks, &dir, &sets, &[]),
                0,
                &[&format!("{ranks} ranks, {ranks} of them on this machine"), "24 steps: loss"],
            );
            assert_eq!(told.matches("24 steps: loss").count(), 1, "{told}");
            same_results(&one, &dir, weights);
            assert_eq!(read_json(&dir.join("run.json"))["ranks"], ranks);
            same_file(&one, &dir, "direction.safetensors");
        }
    }
}

/// On a machine with two GPUs, where `ASFT_TEST_DEVICE` is `cuda`.
#[cfg(feature = "nccl")]
#[test]
fn gpus_train_as_one_by_nccl() {
    if std::env::var("ASFT_TEST_DEVICE").is_ok_and(|device| device == "cuda") {
        let scratch = tempfile::tempdir().unwrap();
        for (method, weights) in WEIGHTS {
            let method = format!("train.method={method}");
            let sets = [&EVERYTHING[..], &["model.device=cuda", &method]].concat();
            let (one, two) = (scratch.path().join(format!("{method}-1")), scratch.path().join(format!("{method}-2")));
            ends(run(1, &one, &sets, &[]), 0, &[]);
            ends(run(2, &two, &sets, &[]), 0, &["gradients are summed by NCCL", "24 steps: loss"]);
            same_results(&one, &two, weights);
        }
    }
}

#[test]
fn ranks_without_samples_and_the_other_objectives() {
    let scratch = tempfile::tempdir().unwrap();
    // Two samples per step, and the defences that look at single tokens or at earlier parameters.
    let lisa = ["defence.kind=lisa", "defence.alignment_data=tests/tiny/train.jsonl", "defence.alignment_steps=2"];
    let few = ["train.batch_size=1", "train.gradient_accumulation=2", "train.max_steps=6", "train.learning_rate=1e-3"];
    let prompts = "defence.prompts=tests/tiny/train.jsonl";
    let cases: [&[&str]; 5] = [
        &["defence.kind=constrained_sft", "lora.dropout=0"],
        &[&lisa[..], &["defence.finetune_steps=2", "defence.proximal_after=0"]].concat(),
        &["asft.lambda=auto", "asft.max_orthogonal=1e-4"],
        &[
            "defence.kind=ema",
            "defence.decay=0.6",
            "data.validation=0.2",
            "output.eval_every_steps=2",
            "output.save_best=true",
        ],
        &["defence.kind=null_space", prompts, "defence.energy=0.6"],
    ];
    for (i, sets) in cases.into_iter().enumerate() {
        let sets = [&few[..], sets].concat();
        let (one, three) = (scratch.path().join(format!("one-{i}")), scratch.path().join(format!("three-{i}")));
        ends(run(1, &one, &sets, &[]), 0, &[]);
        ends(run(3, &three, &sets, &[]), 0, &["a step has at most 2 samples"]);
        same_results(&one, &three, "adapter/adapter_model.safetensors");
    }
}

#[test]
fn early_stops_and_steps_that_are_not_finite_are_decided_together() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = |name: &str| scratch.path().join(name);
    let patience = ["data.validation=0.2", "output.eval_every_steps=2", "train.patience=2", "output.save_best=true"];
    let sets = [&patience[..], &["train.max_steps=400", "train.learning_rate=3e-2"]].concat();
    ends(run(3, &dir("early-3"), &sets, &[]), 0, &["the best state, of step"]);
    assert!(metrics(&dir("early-3")).len() < 400);

    let sets = ["train.learning_rate=1e30", "train.schedule=constant", "output.save_every_steps=2"];
    for (ranks, name) in [(1, "bad-1"), (2, "bad-2")] {
        let told = ends(run(ranks, &dir(name), &sets, &[]), 1, &["step 2 skipped", "3 steps in a row", "step-1"]);
        assert_eq!(told.matches("step 2 skipped").count(), 1, "{told}");
    }
    let samples = |name: &str| metrics(&dir(name)).iter().map(|row| row["samples"].clone()).collect::<Vec<_>>();
    assert_eq!(samples("bad-1"), samples("bad-2"));
}

/// The best state is read by the first rank alone, and measured by all.
#[test]
fn a_suite_is_measured_by_all() {
    let scratch = tempfile::tempdir().unwrap();
    let suite = scratch.path().join("suite.toml");
    let loss = "[[eval]]\nname = 'task'\ndata = 'tests/tiny/train.jsonl'\nlimit = 9\n";
    let harm =
        "[[eval]]\nname = 'harm'\ndata = 'tests/tiny/train.jsonl'\nmetric = 'refusal'\nlimit = 5\nmax_new_tokens = 4\n";
    std::fs::write(&suite, [loss, harm].concat()).unwrap();
    let set = format!("eval.suite={}", suite.display());
    let patience = ["data.validation=0.2", "output.eval_every_steps=2", "train.patience=2", "output.save_best=true"];
    let rates = ["train.max_steps=40", "train.learning_rate=3e-2", "eval.every=3"];
    let sets = [&patience[..], &rates, &[&set]].concat();
    let (one, three) = (scratch.path().join("one"), scratch.path().join("three"));
    ends(run(1, &one, &sets, &[]), 0, &["the best state, of step"]);
    ends(run(3, &three, &sets, &[]), 0, &["the best state, of step"]);
    // At a rate at which the loss soon rises again, rounding soon shows.
    let eval = |dir: &Path| read_json(&dir.join("run.json"))["eval"].clone();
    close(&eval(&one), &eval(&three), 1e-3);
    let rows = |dir: &Path| metrics(dir).into_iter().filter(|row| row["evaluations"].is_array()).collect();
    close(&Value::Array(rows(&one)), &Value::Array(rows(&three)), 1e-3);
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let scratch = tempfile::tempdir().unwrap();
    let (whole, parts) = (scratch.path().join("whole"), scratch.path().join("parts"));
    ends(run(1, &whole, &EVERYTHING, &[]), 0, &[]);
    ends(run(4, &parts, &EVERYTHING, &[]), 0, &[]);
    // As if it had been killed after the checkpoint of step 18.
    interrupt(&parts, "adapter", &[24]);
    ends(run(2, &parts, &EVERYTHING, &["--resume"]), 0, &["resuming after step 18"]);
    same_results(&whole, &parts, "adapter/adapter_model.safetensors");
    // All ranks find that there is nothing left to do.
    ends(run(2, &parts, &EVERYTHING, &["--resume"]), 0, &["the run is finished"]);
    ends(run(2, &parts, &EVERYTHING, &[]), 2, &["holds an earlier run"]);
}

/// Signals rank 1 of a run once it has written this many rows.
fn signal_rank(child: &Child, dir: &Path, steps: usize, signal: &str) {
    let began = Instant::now();
    while metrics_so_far(dir).len() < steps {
        assert!(began.elapsed() < Duration::from_secs(60), "no {steps} rows");
        std::thread::sleep(Duration::from_millis(1));
    }
    let parent = format!("PPid:\t{}\n", child.id());
    let is_rank = |pid: &i32| {
        let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let (status, environment) = (read("status"), read("environ"));
        String::from_utf8_lossy(&status).contains(&parent)
            && environment.split(|&byte| byte == 0).any(|variable| variable == RANK.as_bytes())
    };
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let rank: i32 = pids.into_iter().find(is_rank).expect("no process of rank 1");
    let told = Command::new("sh").args(["-c", &format!("kill -{signal} {rank}")]).status().unwrap();
    assert!(told.success());
}

#[test]
fn a_job_that_lost_a_rank_ends_and_goes_on_as_if_it_had_not() {
    let scratch = tempfile::tempdir().unwrap();
    let (whole, parts) = (scratch.path().join("whole"), scratch.path().join("parts"));
    let sets = [&EVERYTHING[..], &["train.max_steps=150", "output.save_every_steps=10"]].concat();
    ends(run(2, &whole, &sets, &[]), 0, &[]);

    let mut command = run(2, &parts, &sets, &[]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    signal_rank(&child, &parts, 25, "KILL");
    let output = child.wait_with_output().unwrap();
    let told = stderr(&output);
    assert!(!output.status.success() && told.contains("rank 1") && told.contains("signal 9"), "{told}");
    assert!(!parts.join("run.json").exists());

    // A signal to one rank stops all of them, after the same step.
    let mut command = run(2, &parts, &sets, &["--resume"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    signal_rank(&child, &parts, 70, "TERM");
    let output = child.wait_with_output().unwrap();
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(143), "{told}");
    assert!(told.contains("stopped by SIGTERM after step") && told.contains("resuming after step"), "{told}");

    ends(run(2, &parts, &sets, &["--resume"]), 0, &["resuming after step"]);
    same_run(&whole, &parts, "adapter/adapter_model.safetensors");
}

#[test]
fn what_is_wrong_on_one_rank_is_told_once_and_ends_all() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    // A job whose last rank has other arguments than the first two.
    let unlike = |sets: &[&str]| {
        let mut command = run(2, &dir, &[], &[]);
        command.args([":", "-n", "1"]).arg(ASFT);
        train_arguments(&mut command, &dir, sets, &[]);
        command
    };
    for (set, needle) in [
        ("train.learning_rate=1e-5", "rank 2: not the same as on rank 0: train.learning_rate;"),
        ("data.train=nowhere.jsonl", "rank 2: data.train: dataset nowhere.jsonl does not exist"),
        ("train.sead=1", "rank 2: "),
    ] {
        let told = ends(unlike(&[set]), 2, &[needle]);
        assert_eq!(told.matches("error: ").count(), 1, "{told}");
        assert!(!dir.exists(), "{set}");
    }
    let mut command = launched(2);
    command.args(["eval", "--model", "tests/tiny/aligned", "--data", "tests/tiny/train.jsonl"]);
    let told = ends(command, 2, &["only asft train and asft direction"]);
    assert_eq!(told.matches("error: ").count(), 1, "{told}");
    // What only the first rank can see, all learn.
    std::fs::write(&dir, "a file").unwrap();
    ends(run(2, &dir, &[], &[]), 2, &["is not a folder"]);
}

#[test]
fn a_direction_is_the_same_file_for_any_number_of_ranks() {
    let scratch = tempfile::tempdir().unwrap();
    let compute = |ranks: usize| {
        let (mut command, out) = (launched(ranks), scratch.path().join(format!("{ranks}.safetensors")));
        command.args(["direction", "--aligned", "sandbox/aligned", "--unaligned", "sandbox/unaligned", "--json"]);
        command.args(["--target-modules", "all-linear", "--out"]).arg(&out);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let mut summary: Value = serde_json::from_slice(&output.stdout).unwrap();
        let modules = summary["modules"].as_array_mut().unwrap();
        for module in modules.iter_mut() {
            module.as_object_mut().unwrap().retain(|key, _| key != "seconds" && key != "phases");
        }
        (std::fs::read(out).unwrap(), std::mem::take(modules))
    };
    let one = compute(1);
    assert!(one.1.len() > 20);
    for ranks in [2, 4] {
        let many = compute(ranks);
        assert!(one.0 == many.0 && one.1 == many.1, "{ranks} ranks");
    }
    // Nothing is written if a rank fails.
    let mut command = launched(2);
    command.args(["direction", "--aligned", "sandbox/aligned", "--unaligned", "tests/tiny/unaligned", "--out"]);
    command.arg(scratch.path().join("none.safetensors"));
    ends(command, 2, &["the two models have no targeted matrix in common"]);
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 3);
}

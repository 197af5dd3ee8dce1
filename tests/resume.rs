//! Runs that are stopped, killed, starved and changed, and go on: the real binary on the tiny model.

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
/// Kills of the crash test; ASFT_TEST_KILLS sets another number.
const KILLS: usize = 12;

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

fn signal(child: &Child, signal: i32) {
    // SAFETY: kill takes plain integers, and the child has not been waited for.
    let code = unsafe { libc::kill(child.id() as i32, signal) };
    assert_eq!(code, 0);
}

/// Starts a run and signals it once it has written `steps` rows.
fn signalled_after(mut command: Command, dir: &Path, steps: usize, signals: &[i32]) -> Output {
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

#[test]
fn a_stopped_run_goes_on_exactly() {
    for (method, weights) in [("lora", "adapter/adapter_model.safetensors"), ("full", "model/model.safetensors")] {
        let scratch = tempfile::tempdir().unwrap();
        let (whole, parts) = (path(&scratch, "whole"), path(&scratch, "it's in parts"));
        let method = format!("train.method={method}");
        let sets = [
            &EVERYTHING[..],
            &[&method, "train.learning_rate=1e-3", "train.max_steps=200", "output.save_every_steps=90"],
        ]
        .concat();
        ends(train(&whole, &sets, &[]), 0, &[]);

        for (steps, number, code, name) in [(20, libc::SIGTERM, 143, "SIGTERM"), (60, libc::SIGINT, 130, "SIGINT")] {
            let flags: &[&str] = if steps == 20 { &[] } else { &["--resume"] };
            let output = signalled_after(train(&parts, &sets, flags), &parts, steps, &[number]);
            let text = stderr(&output);
            assert_eq!(output.status.code(), Some(code), "{text}");
            let done = rows(&parts).iter().filter(|row| row["loss"].is_number()).count();
            assert!(text.contains(&format!("stopped by {name} after step {done}")), "{text}");
            assert!(parts.join(format!("checkpoints/step-{done}")).is_dir());
            assert!(!parts.join("run.json").exists() && done < 200, "{done}");
            let command = text.lines().find_map(|line| line.strip_prefix("go on with: ")).unwrap();
            let words = shlex::split(command).unwrap();
            assert!(words.contains(&format!("output.dir={}", parts.display())), "{command}");
            assert_eq!(words.last().map(String::as_str), Some("--resume"));
        }
        // Two at once: whether there is still a checkpoint or not, nothing is broken.
        let output = signalled_after(train(&parts, &sets, &["--resume"]), &parts, 90, &[libc::SIGTERM, libc::SIGTERM]);
        assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
        ends(train(&parts, &sets, &["--resume"]), 0, &["resuming after step"]);
        same_run(&whole, &parts, weights);
        is_tidy(&parts);
        let run: Value = serde_json::from_slice(&std::fs::read(parts.join("run.json")).unwrap()).unwrap();
        // A stay that left no checkpoint leaves no trace.
        assert!(run["steps"] == 200 && run["resumed_at"].as_array().unwrap().len() >= 2, "{run}");
    }
}

#[test]
fn a_second_signal_does_not_wait_for_the_step() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, data) = (path(&scratch, "run"), path(&scratch, "train.jsonl"));
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tiny/train.jsonl")).unwrap();
    std::fs::write(&data, text.repeat(100)).unwrap();
    // One step of all samples, which takes seconds.
    let sets = [&format!("data.train={}", data.display()), "train.gradient_accumulation=1000000", "train.epochs=1"];
    let mut child = train(&dir, &sets, &["--quiet"]).spawn().unwrap();
    while !dir.join("config.toml").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(100));
    signal(&child, libc::SIGINT);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(child.try_wait().unwrap(), None, "the first signal did not wait");
    let began = Instant::now();
    signal(&child, libc::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(began.elapsed() < Duration::from_secs(1) && rows(&dir).is_empty());
}

#[test]
fn a_run_killed_again_and_again_ends_the_same() {
    let kills = std::env::var("ASFT_TEST_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let scratch = tempfile::tempdir().unwrap();
    let (whole, parts) = (path(&scratch, "whole"), path(&scratch, "parts"));
    let sets = [&EVERYTHING[..], &["output.save_every_steps=2", "output.save_best=true"]].concat();
    ends(train(&whole, &sets, &[]), 0, &[]);
    let took = rows(&whole).last().map_or(0.1, |row| row["elapsed_seconds"].as_f64().unwrap_or(0.1));
    let (mut killed, mut torn, mut random) = (0, 0, 1u64);
    while killed < kills {
        let mut child = train(&parts, &sets, &["--resume", "--quiet"]).stderr(Stdio::null()).spawn().unwrap();
        // A linear congruential generator is random enough here, and repeats itself.
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        std::thread::sleep(Duration::from_secs_f64((0.15 + took) * (random >> 40) as f64 / (1u64 << 24) as f64));
        signal(&child, libc::SIGKILL);
        if child.wait().unwrap().code() == Some(0) {
            same_run(&whole, &parts, "adapter/adapter_model.safetensors");
            is_tidy(&parts);
            std::fs::remove_dir_all(&parts).unwrap();
        } else {
            killed += 1;
            let left = std::fs::read_dir(parts.join("checkpoints")).into_iter().flatten().flatten();
            torn += usize::from(left.into_iter().any(|e| e.file_name().to_string_lossy().starts_with(".asft")));
        }
    }
    println!("{killed} kills, {torn} of them in the middle of a checkpoint");
    ends(train(&parts, &sets, &["--resume"]), 0, &[]);
    same_run(&whole, &parts, "adapter/adapter_model.safetensors");
    is_tidy(&parts);
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

#[test]
fn damaged_checkpoints_are_passed_over() {
    let scratch = tempfile::tempdir().unwrap();
    let whole = path(&scratch, "whole");
    ends(train(&whole, &[&EVERYTHING[..], &["train.max_steps=12", "output.keep_last=3"]].concat(), &[]), 0, &[]);
    let flip = |path: PathBuf| {
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    };
    let cut = |path: PathBuf| {
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
    };
    type Damage<'a> = (&'a str, &'a dyn Fn(PathBuf), &'a str);
    let damages: [Damage; 6] = [
        ("optimizer.safetensors", &flip, "optimizer.safetensors is damaged"),
        ("adapter_model.safetensors", &cut, "adapter_model.safetensors is damaged"),
        ("state.json", &flip, "state.json is damaged"),
        ("checksums.json", &flip, "is not usable"),
        ("checksums.json", &|path| std::fs::remove_file(path).unwrap(), "incomplete"),
        ("adapter_model.safetensors", &|path| std::fs::remove_file(path).unwrap(), "adapter_model.safetensors"),
    ];
    for (i, (file, damage, needle)) in damages.into_iter().enumerate() {
        let dir = path(&scratch, &i.to_string());
        let sets = interrupted(&dir, &[]);
        damage(dir.join("checkpoints/step-10").join(file));
        ends(train(&dir, &borrowed(&sets), &["--resume"]), 0, &["warning: ", "step-10", needle, "after step 5"]);
        same_run(&whole, &dir, "adapter/adapter_model.safetensors");
        assert_eq!(checkpoints(&dir), ["step-10", "step-10.damaged", "step-12", "step-5"]);
    }
    let dir = path(&scratch, "all");
    let sets = interrupted(&dir, &[]);
    for step in ["step-5", "step-10"] {
        flip(dir.join("checkpoints").join(step).join("state.json"));
    }
    let before = std::fs::read(dir.join("metrics.jsonl")).unwrap();
    ends(train(&dir, &borrowed(&sets), &["--resume"]), 2, &["none of the checkpoints", "--overwrite"]);
    assert_eq!(std::fs::read(dir.join("metrics.jsonl")).unwrap(), before);
}

#[test]
fn what_has_changed_is_refused_until_it_is_allowed() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, data) = (path(&scratch, "run"), path(&scratch, "train.jsonl"));
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tiny/train.jsonl")).unwrap();
    std::fs::write(&data, &text).unwrap();
    let sets = interrupted(&dir, &[&format!("data.train={}", data.display())]);
    let before = timeless(&dir);
    let with = |more: &[&str], flags: &[&str]| train(&dir, &[&borrowed(&sets), more].concat(), flags);

    let text_of = ends(
        with(&["train.learning_rate=0.5", "train.seed=1"], &["--resume"]),
        2,
        &[
            "train.learning_rate: was 0.01, is 0.5",
            "train.seed: was 42, is 1",
            "--allow-change train.learning_rate --allow-change train.seed",
        ],
    );
    assert!(!text_of.contains("output.dir"), "{text_of}");
    let allowed = ["--resume", "--allow-change", "train.learning_rate"];
    ends(with(&["train.learning_rate=0.5", "train.seed=1"], &allowed), 2, &["train.seed: was 42"]);
    ends(with(&[], &["--resume", "--allow-change", "train.learning_rat"]), 2, &["did you mean `train.learning_rate`"]);
    ends(with(&["lora.rank=4"], &["--resume", "--allow-change", "lora.rank"]), 2, &["start another run"]);
    ends(with(&["model.unaligned=tests/tiny/aligned"], &["--resume"]), 2, &["model.unaligned: was"]);
    std::fs::write(&data, text.replacen("22", "23", 1)).unwrap();
    ends(with(&[], &["--resume"]), 2, &["data.train: its content has changed"]);
    std::fs::remove_file(&data).unwrap();
    ends(with(&[], &["--resume"]), 2, &["data.train", "train.jsonl"]);
    std::fs::write(&data, text.replacen("22", "23", 1)).unwrap();
    assert_eq!(timeless(&dir), before);
    assert_eq!(checkpoints(&dir), ["step-10", "step-5"]);

    ends(with(&["train.learning_rate=0.5"], &[&allowed[..], &["--allow-change", "data.train"]].concat()), 0, &[]);
    let rows = rows(&dir);
    let rate = |step: u64| {
        rows.iter().find(|row| row["step"] == step && row["loss"].is_number()).unwrap()["learning_rate"].as_f64()
    };
    assert!(rate(10) < Some(0.01) && rate(11) > Some(0.01), "{:?} {:?}", rate(10), rate(11));
    // The run now is what it was resumed as.
    ends(with(&["train.learning_rate=0.5"], &["--resume"]), 0, &["finished"]);
}

#[test]
fn other_weights_and_directions_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, model, direction) = (path(&scratch, "run"), path(&scratch, "model"), path(&scratch, "d.safetensors"));
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tiny");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(tiny.join("aligned")).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, model.join(from.file_name().unwrap())).unwrap();
    }
    let compute = |rank: &str| {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("asft"));
        command.args(["direction", "--rank", rank, "--aligned"]).arg(&model).arg("--unaligned");
        command.arg(tiny.join("unaligned")).arg("--out").arg(&direction);
        assert!(command.output().unwrap().status.success());
    };
    compute("4");
    let sets = interrupted(
        &dir,
        &[&format!("model.aligned={}", model.display()), &format!("asft.direction={}", direction.display())],
    );
    let resume = |flags: &[&str]| train(&dir, &borrowed(&sets), &[&["--resume"], flags].concat());
    compute("3");
    ends(resume(&[]), 2, &["asft.direction: its content has changed"]);
    compute("4");
    // A byte of the final norm, which no direction and no adapter depends on.
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    std::fs::write(model.join("config.json"), config.clone() + "\n").unwrap();
    ends(resume(&[]), 2, &["model.aligned: its content has changed"]);
    ends(resume(&["--allow-change", "model.aligned"]), 0, &["resuming after step 10"]);
}

#[test]
fn the_direction_that_a_run_computed_is_used_again() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = path(&scratch, "run");
    let sets = interrupted(&dir, &[]);
    let file = dir.join("direction.safetensors");
    let written = || std::fs::metadata(&file).unwrap().modified().unwrap();
    let first = written();
    ends(train(&dir, &borrowed(&sets), &["--resume"]), 0, &[]);
    assert_eq!(written(), first);
    let other = path(&scratch, "other");
    let sets = interrupted(&other, &[]);
    std::fs::remove_file(other.join("direction.safetensors")).unwrap();
    ends(train(&other, &borrowed(&sets), &["--resume"]), 0, &["resuming after step 10"]);
    same_run(&dir, &other, "adapter/adapter_model.safetensors");
}

#[test]
fn runs_without_a_checkpoint_and_finished_ones_say_so() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = path(&scratch, "run");
    let sets = ["train.max_steps=4"];
    ends(train(&dir, &sets, &["--resume"]), 0, &["nothing to resume: starting from the beginning"]);
    let before = std::fs::read(dir.join("metrics.jsonl")).unwrap();
    ends(train(&dir, &sets, &["--resume"]), 0, &["the run is finished"]);
    ends(train(&dir, &["train.max_steps=6"], &["--resume"]), 2, &["train.max_steps: was 4, is 6"]);
    let grow = ["--resume", "--allow-change", "train.max_steps"];
    ends(train(&dir, &["train.max_steps=6"], &grow), 2, &["finished and kept no checkpoint", "save_every_steps"]);
    ends(train(&dir, &sets, &[]), 2, &["--resume", "--overwrite"]);
    assert_eq!(std::fs::read(dir.join("metrics.jsonl")).unwrap(), before);
    std::fs::remove_file(dir.join("run.json")).unwrap();
    ends(train(&dir, &sets, &["--resume"]), 0, &["stopped before its first checkpoint"]);
    // Killed so early that only the direction was there.
    std::fs::remove_file(dir.join("config.toml")).unwrap();
    std::fs::remove_file(dir.join("run.json")).unwrap();
    ends(train(&dir, &sets, &["--resume"]), 2, &["no config.toml", "--overwrite"]);
    std::fs::remove_file(dir.join("metrics.jsonl")).unwrap();
    std::fs::remove_dir_all(dir.join("adapter")).unwrap();
    ends(train(&dir, &sets, &["--resume"]), 0, &["stopped before its first checkpoint"]);

    let dir = path(&scratch, "grown");
    let sets = ["train.max_steps=4", "output.save_every_steps=3", "train.schedule=constant"];
    ends(train(&dir, &sets, &[]), 0, &[]);
    let adapter = || std::fs::read(dir.join("adapter/adapter_model.safetensors")).unwrap();
    let short = adapter();
    let longer = ["train.max_steps=9", sets[1], sets[2]];
    ends(train(&dir, &longer, &grow), 0, &["resuming after step 4", "9 steps"]);
    assert!(adapter() != short);
    let whole = path(&scratch, "whole");
    ends(train(&whole, &longer, &[]), 0, &[]);
    same_run(&whole, &dir, "adapter/adapter_model.safetensors");
    ends(train(&dir, &sets, &grow), 0, &["the run is finished"]);
}

#[test]
fn the_newest_and_the_best_checkpoints_are_kept() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = path(&scratch, "run");
    // A rate at which the loss falls first and rises again.
    let sets = [
        "data.validation=0.2",
        "output.eval_every_steps=2",
        "output.save_every_steps=3",
        "output.keep_last=1",
        "output.save_best=true",
        "train.patience=4",
        "train.learning_rate=0.1",
        "train.schedule=constant",
        "train.max_steps=400",
    ];
    let text = ends(train(&dir, &sets, &[]), 0, &[]);
    let evals: Vec<(u64, f64)> =
        rows(&dir).iter().filter_map(|row| Some((row["step"].as_u64()?, row["eval_loss"].as_f64()?))).collect();
    let (best, lowest) = evals.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    let last = evals.last().unwrap().0;
    assert_eq!(last, best + 2 * 4, "{evals:?}");
    assert!(last < 400 && text.contains(&format!("the best state, of step {best}")), "{text}");
    assert_eq!(checkpoints(&dir).len(), 2, "{:?}", checkpoints(&dir));
    let file = |name: String| std::fs::read(dir.join(name)).unwrap();
    let of_best = file(format!("checkpoints/step-{best}/adapter_model.safetensors"));
    assert!(of_best == file("adapter/adapter_model.safetensors".into()));
    // A checkpoint is an adapter like any other.
    let mut eval = Command::new(assert_cmd::cargo::cargo_bin("asft"));
    eval.current_dir(env!("CARGO_MANIFEST_DIR")).args(["eval", "--json", "--model", "tests/tiny/aligned", "--data"]);
    eval.arg("tests/tiny/train.jsonl").arg("--adapter").arg(dir.join(format!("checkpoints/step-{best}")));
    assert!(eval.output().unwrap().status.success() && lowest.is_finite());
}

#[test]
fn steps_that_are_not_finite_are_skipped_reported_and_end_the_run() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = path(&scratch, "run");
    let sets = ["train.learning_rate=1e30", "train.schedule=constant", "output.save_every_steps=2"];
    let text =
        ends(train(&dir, &sets, &[]), 1, &["step 2 skipped", "tests/tiny/train.jsonl:", "3 steps in a row", "step-1"]);
    assert_eq!(text.matches("skipped").count(), 3, "{text}");
    let rows = rows(&dir);
    assert_eq!(rows.len(), 4);
    assert!(rows[0]["loss"].is_number() && rows[3]["samples"].as_array().unwrap().len() == 8, "{rows:?}");
    assert!(rows[3]["samples"][0].as_str().unwrap().starts_with("tests/tiny/train.jsonl:"));
    assert_eq!(checkpoints(&dir), ["step-1"]);
    assert!(!dir.join("adapter").exists() && !dir.join("run.json").exists());
    ends(train(&dir, &sets, &["--resume"]), 1, &["resuming after step 1", "step 2 skipped"]);
    let lower = ["train.learning_rate=1e-3", sets[1], sets[2], "train.max_bad_steps=5"];
    let allowed = ["--resume", "--allow-change", "train.learning_rate", "--allow-change", "train.max_bad_steps"];
    ends(train(&dir, &lower, &allowed), 1, &["5 steps in a row"]);
}

#[test]
fn a_full_disk_leaves_what_was_there() {
    let scratch = tempfile::tempdir().unwrap();
    let (whole, dir) = (path(&scratch, "whole"), path(&scratch, "run"));
    let sets = ["train.max_steps=120", "output.save_every_steps=10", "lora.rank=4"];
    ends(train(&whole, &sets, &[]), 0, &[]);
    // Files of this process may grow to so many blocks of 512 bytes: enough for a checkpoint, not for all metrics.
    let limited = |command: Command, blocks: usize| {
        let mut shell = Command::new("sh");
        shell.current_dir(env!("CARGO_MANIFEST_DIR")).arg("-c");
        shell.arg(format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"")).arg("sh");
        shell.arg(command.get_program()).args(command.get_args());
        shell
    };
    // Without a first checkpoint.
    ends(limited(train(&dir, &[&sets[..], &["asft.penalize=none"]].concat(), &[]), 8), 1, &["error", "too large"]);
    is_tidy(&dir);
    std::fs::remove_dir_all(&dir).unwrap();
    let stopped = signalled_after(train(&dir, &sets, &[]), &dir, 12, &[libc::SIGTERM]);
    assert_eq!(stopped.status.code(), Some(143));
    let before = checkpoints(&dir);
    ends(limited(train(&dir, &sets, &["--resume"]), 8), 1, &["error", "too large"]);
    is_tidy(&dir);
    assert_eq!(checkpoints(&dir), before);
    ends(train(&dir, &sets, &["--resume"]), 0, &[]);
    same_run(&whole, &dir, "adapter/adapter_model.safetensors");
}

#[test]
fn all_that_is_wrong_is_said_at_once_and_before_anything_is_written() {
    let scratch = tempfile::tempdir().unwrap();
    let bad = path(&scratch, "bad.jsonl");
    std::fs::write(&bad, "{\"instruction\": \"a\", \"output\": \"b\"}\n{\"instruction\"").unwrap();
    let sets = [&format!("data.train={}", bad.display()), "asft.direction=./nowhere.safetensors"];
    let needles = ["3 problems", "/dev/full", "is not a folder", "bad.jsonl:2", "nowhere.safetensors"];
    ends(train(Path::new("/dev/full/run"), &sets, &[]), 2, &needles);
    let dir = path(&scratch, "run");
    let sets = ["output.save_every_steps=1", "output.keep_last=100000000000"];
    ends(train(&dir, &sets, &[]), 2, &["more for its result and checkpoints", "left", "output.keep_last"]);
    assert!(!dir.exists());
}

#[test]
fn a_folder_has_one_writer() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = path(&scratch, "run");
    std::fs::create_dir(&dir).unwrap();
    let lock = std::fs::File::open(&dir).unwrap();
    lock.try_lock().unwrap();
    ends(train(&dir, &["train.max_steps=2"], &[]), 2, &["another asft process"]);
    drop(lock);
    ends(train(&dir, &["train.max_steps=2"], &["--resume"]), 0, &[]);
}

//! `[eval]`: a suite measured before, during and after training, with the real binary on the toy model.

use crate::support::command::{asft, ends, json, refused, refused_unwritten, stderr, succeeds, text, train};
use crate::support::files::read_json;
use crate::support::runs::{WEIGHTS, interrupt, metrics, metrics_so_far, same_file, same_run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The tiny model as a file that does not say how its tokenizer splits text.
const TINY_GGUF: &str = "tests/fixtures/gguf/tiny.gguf";
const LOSS: &str = "[[eval]]\nname = 'task loss'\ndata = 'tests/tiny/train.jsonl'\nlimit = 8\n";

/// A refusal of `limit` prompts.
fn refusal(limit: usize, max_new_tokens: usize) -> String {
    format!(
        "[[eval]]\nname = 'harm'\ndata = 'tests/tiny/train.jsonl'\nmetric = 'refusal'\nlimit = {limit}\nmax_new_tokens = \
         {max_new_tokens}\n"
    )
}

/// The suite in `scratch`, and the setting that names it.
fn suite(scratch: &TempDir, text: &str) -> (PathBuf, String) {
    let path = scratch.path().join("suite.toml");
    fs::write(&path, text).unwrap();
    let set = format!("eval.suite={}", path.display());
    (path, set)
}

/// The rows of `metrics.jsonl` that a suite left.
fn suite_rows(dir: &Path) -> Vec<Value> {
    metrics(dir).into_iter().filter(|row| row["evaluations"].is_array()).collect()
}

fn steps(rows: &[Value]) -> Vec<u64> {
    rows.iter().map(|row| row["step"].as_u64().unwrap()).collect()
}

fn record(dir: &Path) -> Value {
    read_json(&dir.join("run.json"))["eval"].clone()
}

/// Starts a run and signals it once it has written `rows` rows.
fn stopped_after(dir: &Path, sets: &[&str], rows: usize) -> Output {
    let child = train(dir, sets, &[]).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while metrics_so_far(dir).len() < rows {
        assert!(began.elapsed() < Duration::from_secs(60), "no {rows} rows");
        std::thread::sleep(Duration::from_millis(1));
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn both_ends_are_what_eval_measures() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let judge = "[[eval]]\nname = 'judged'\ndata = 'tests/tiny/train.jsonl'\nmetric = 'judge'\njudge = \
                 'tests/fixtures/eval/judge'\nlimit = 3\nmax_new_tokens = 4\n";
    let (path, set) = suite(&scratch, &[LOSS, &refusal(6, 4), judge].concat());
    let told = succeeds(train(&dir, &[&set, "eval.every=2", "train.max_steps=5"], &[]));
    let ends = record(&dir);
    assert_eq!((&ends["before"]["step"], &ends["after"]["step"]), (&json!(0), &json!(5)));
    let rows = suite_rows(&dir);
    assert_eq!(steps(&rows), [0, 2, 4, 5]);
    assert_eq!((&rows[0], &rows[3]), (&ends["before"], &ends["after"]));

    let mut eval = asft(&["eval", "--json", "--baseline", "--model", "tests/tiny/aligned"]);
    let found = json(eval.arg("--adapter").arg(&dir).arg("--suite").arg(&path));
    for (end, model) in [("before", 0), ("after", 1)] {
        assert_eq!(ends[end]["evaluations"], found["models"][model]["evaluations"], "{end}");
    }
    let loss = |end: &str| ends[end]["evaluations"][0]["loss"].as_f64().unwrap();
    assert!(loss("after") < loss("before"), "{ends}");

    let table: Vec<&str> = told.lines().skip_while(|line| !line.contains("evaluations of ")).collect();
    assert!(table[1].contains("before") && table[1].trim_end().ends_with("after step 5"), "{told}");
    let line = table.iter().find(|line| line.trim_start().starts_with("task loss")).unwrap();
    assert!(line.contains(&format!("{:.4}", loss("before"))) && line.ends_with(&format!("{:.4}", loss("after"))));
    let page = fs::read_to_string(dir.join("report.html")).unwrap();
    for part in
        ["<h2>Evaluations</h2>", "harm, before: ", "judged, after: ", "task loss, after: ", "<figcaption>harm, %"]
    {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn evaluations_change_no_step_and_survive_a_stop() {
    for (method, weights) in WEIGHTS {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        let (_, set) = suite(&scratch, &[LOSS, &refusal(3, 4)].concat());
        let method_set = format!("train.method={method}");
        let plain = [
            &method_set,
            "lora.dropout=0.1",
            "train.learning_rate=1e-3",
            "train.max_steps=11",
            "output.save_every_steps=4",
            "output.keep_last=9",
        ];
        let sets = [&plain[..], &[&set, "eval.every=2"]].concat();
        let (without, whole) = (at("without"), at("whole"));
        succeeds(train(&without, &plain, &[]));
        succeeds(train(&whole, &sets, &[]));
        same_file(&without, &whole, weights);
        assert_eq!(steps(&suite_rows(&whole)), [0, 2, 4, 6, 8, 10, 11]);
        // From a checkpoint after which the suite is due, and with rows beyond it.
        let parts = at("parts");
        succeeds(train(&parts, &sets, &[]));
        let result = weights.split('/').next().unwrap();
        interrupt(&parts, result, &[8, 11]);
        ends(train(&parts, &sets, &["--resume"]), 0, &["resuming after step 4"]);
        same_run(&whole, &parts, weights);
        assert_eq!(record(&whole), record(&parts));
    }
}

#[test]
fn another_suite_or_other_samples_are_not_compared() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let (path, set) = suite(&scratch, LOSS);
    let sets = [&set, "train.max_steps=6", "output.save_every_steps=3", "output.keep_last=9"];
    succeeds(train(&dir, &sets, &[]));
    interrupt(&dir, "adapter", &[6]);
    fs::write(&path, LOSS.replace("limit = 8", "limit = 7")).unwrap();
    refused(train(&dir, &sets, &["--resume"]), &["eval.suite: its content has changed", "--allow-change eval.suite"]);
    succeeds(train(&dir, &sets, &["--resume", "--allow-change", "eval.suite"]));
    let ends = record(&dir);
    assert!(ends["before"].is_null() && ends["after"]["step"] == 6, "{ends}");
    let page = fs::read_to_string(dir.join("report.html")).unwrap();
    assert!(page.contains("before: not measured"));
}

#[test]
fn a_signal_ends_an_evaluation_and_the_run_goes_on_exactly() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    // Answers that take their time.
    let (path, set) = suite(&scratch, &refusal(48, 96));
    let sets = [&set, "eval.batch_size=1", "eval.every=1", "train.max_steps=3"];
    let (whole, parts) = (at("whole"), at("parts"));
    succeeds(train(&whole, &sets, &[]));
    // Two rows: the suite before the first step, and the first step. The next is the suite again.
    let output = stopped_after(&parts, &sets, 2);
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(143), "{told}");
    assert!(told.contains("stopping after what is under way; a second signal quits without a checkpoint"), "{told}");
    assert!(told.contains("stopped by SIGTERM after step 1, kept in "), "{told}");
    assert_eq!(steps(&suite_rows(&parts)), [0]);
    succeeds(train(&parts, &sets, &["--resume"]));
    same_run(&whole, &parts, WEIGHTS[0].1);
    assert_eq!(record(&whole), record(&parts));

    // At the end the result is there already.
    let last = at("last");
    let output = stopped_after(&last, &[&set, "eval.batch_size=1", "train.max_steps=1"], 2);
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(143), "{told}");
    let command =
        told.lines().find_map(|line| line.split_once("was not measured on the result; to do so: ")).unwrap().1;
    assert!(command.ends_with(&format!("--suite {}", path.display())), "{command}");
    assert!(record(&last)["after"].is_null() && last.join("adapter").is_dir());
    ends(train(&last, &[&set, "eval.batch_size=1", "train.max_steps=1"], &["--resume"]), 0, &["the run is finished"]);
}

/// Before the first step there is nothing to keep.
#[test]
fn a_signal_during_the_first_evaluation_ends_the_run_at_once() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let (_, set) = suite(&scratch, &refusal(96, 200));
    let sets = [&set, "eval.batch_size=1", "train.max_steps=2"];
    let child = train(&dir, &sets, &["-q"]).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while !dir.join("metrics.jsonl").exists() {
        assert!(began.elapsed() < Duration::from_secs(60), "no metrics.jsonl");
        std::thread::sleep(Duration::from_millis(1));
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((stderr(&output).as_str(), output.status.code()), ("stopped by SIGINT; no step was done\n", Some(130)));
    assert!(metrics(&dir).is_empty() && !dir.join("checkpoints").exists());
}

#[test]
fn what_is_exported_is_what_is_measured() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let (path, set) = suite(&scratch, LOSS);
    // A rate at which the loss first falls and then rises again.
    let sets = [
        &set,
        "data.validation=0.2",
        "output.eval_every_steps=2",
        "output.save_best=true",
        "train.patience=2",
        "train.learning_rate=0.1",
        "train.schedule=constant",
        "train.max_steps=400",
    ];
    let told = succeeds(train(&dir, &sets, &[]));
    let after = &record(&dir)["after"];
    let step = after["step"].as_u64().unwrap();
    assert!(told.contains(&format!("the best state, of step {step}")), "{told}");
    assert_eq!(steps(&suite_rows(&dir)), [0]);
    let mut eval = asft(&["eval", "--json", "--model", "tests/tiny/aligned"]);
    let found = json(eval.arg("--adapter").arg(&dir).arg("--suite").arg(&path));
    assert_eq!(after["evaluations"], found["models"][0]["evaluations"]);
}

#[test]
fn mistakes_of_a_suite_are_told_before_the_run() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let near = scratch.path().join("siute.toml");
    let (path, set) = suite(&scratch, "[[eval]]\ndata = 'tests/tiny/train.jsonl'\nmatric = 'loss'\n");
    let misspelt = format!("eval.suite={}", near.display());
    for flags in [&[][..], &["--dry-run"], &["--check"]] {
        refused_unwritten(train(&dir, &[&misspelt], flags), &dir, &["eval.suite", "siute.toml"]);
        refused_unwritten(train(&dir, &[&set], flags), &dir, &["eval.suite", "suite.toml:3", "did you mean `metric`?"]);
    }
    // Samples that are missing, and samples without what the metric needs; and other problems of the run with them.
    let missing = "[[eval]]\nname = 'a'\ndata = 'tests/tiny/tran.jsonl'\n[[eval]]\nname = 'b'\ndata = 'none.jsonl'\n";
    fs::write(&path, missing).unwrap();
    for flags in [&[][..], &["--dry-run"]] {
        let sets = [&set, "data.validation=no.jsonl"];
        let needles = ["evaluation \"a\"", "tran.jsonl", "evaluation \"b\"", "none.jsonl", "no.jsonl"];
        refused_unwritten(train(&dir, &sets, flags), &dir, &needles);
    }
    let data = scratch.path().join("data.jsonl");
    fs::write(&data, "{\"prompt\": \"x\"}\n").unwrap();
    let evaluation = |name: &str, more: &str| format!("[[eval]]\nname = '{name}'\ndata = '{}'\n{more}", data.display());
    let unfit = [evaluation("c", "metric = 'accuracy'\n"), evaluation("d", "")].concat();
    fs::write(&path, unfit).unwrap();
    for flags in [&[][..], &["--dry-run"]] {
        refused_unwritten(train(&dir, &[&set], flags), &dir, &["evaluation \"c\"", "evaluation \"d\"", "data.jsonl"]);
    }
    for (set, needle) in [
        ("eval.every=5", "`eval.every` needs `eval.suite`"),
        ("eval.siute=x", "did you mean `eval.suite`?"),
        ("eval.batch_size=0", "`eval.batch_size` must be at least 1"),
    ] {
        refused_unwritten(train(&dir, &[set], &["--check"]), &dir, &[needle]);
    }
}

#[test]
fn without_a_suite_the_last_line_says_how_to_measure() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let tokenizer = "model.tokenizer=tests/tiny/aligned";
    for (method, base, model) in [
        ("lora", "tests/tiny/aligned", "tests/tiny/aligned"),
        ("lora", TINY_GGUF, TINY_GGUF),
        ("full", "tests/tiny/aligned", text(&dir.join("model"))),
    ] {
        let (method_set, base) = (format!("train.method={method}"), format!("model.aligned={base}"));
        let sets = [&method_set, "train.max_steps=1", "model.dtype=bf16", &base, tokenizer];
        let told = succeeds(train(&dir, &sets, &["--overwrite"]));
        let command = told.lines().last().unwrap().strip_prefix("to measure what it answers: asft ").unwrap();
        let words: Vec<String> = shlex::split(command).unwrap();
        let words: Vec<&str> =
            words.iter().map(|word| if word == "PROMPTS.jsonl" { "tests/tiny/train.jsonl" } else { word }).collect();
        let found = json(asft(&words).args(["--json", "--limit", "1", "--max-new-tokens", "2"]));
        let models = found["models"].as_array().unwrap();
        assert_eq!((&models[0]["model"], models.len()), (&json!(model), if method == "lora" { 2 } else { 1 }));
    }
}

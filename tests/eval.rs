//! `asft eval` end to end, with the real binary on the toy model.

mod common;

use assert_cmd::Command;
use common::fixture;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn eval(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("asft").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR")).arg("eval").args(arguments);
    command
}

fn report(arguments: &[&str]) -> Value {
    let output = eval(arguments).arg("--json").assert().success().get_output().stdout.clone();
    serde_json::from_slice(&output).unwrap()
}

fn write(path: &Path, records: &[Value]) {
    fs::write(path, records.iter().map(|record| format!("{record}\n")).collect::<String>()).unwrap();
}

#[test]
fn accuracy_counts_what_generate_answers() {
    let dir = tempfile::tempdir().unwrap();
    let (data, samples) = (dir.path().join("data.jsonl"), dir.path().join("samples.jsonl"));
    let prompts: Vec<String> = (0..7).map(|i| format!("What is {i} and {}?", 2 * i)).collect();
    write(&data, &prompts.iter().map(|prompt| json!({"prompt": prompt})).collect::<Vec<_>>());
    let output = Command::cargo_bin("asft")
        .unwrap()
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["generate", "--model", "tests/tiny/aligned", "--max-new-tokens", "12", "--batch-size", "1", "--data"])
        .arg(&data)
        .output()
        .unwrap();
    let lines: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // The references: the model's own answers, two of them spoilt.
    let answer = |i: usize| lines[i]["answer"].as_str().unwrap().trim().to_string();
    let reference = |i: usize| if i < 2 { format!("not {}", answer(i)) } else { answer(i) };
    let records: Vec<Value> = (0..7).map(|i| json!({"prompt": prompts[i], "output": reference(i)})).collect();
    write(&data, &records);
    let (data, samples) = (data.to_str().unwrap(), samples.to_str().unwrap());
    let found = report(&[
        "--model",
        "tests/tiny/aligned",
        "--data",
        data,
        "--metric",
        "accuracy",
        "--max-new-tokens",
        "12",
        "--batch-size",
        "3",
        "--samples",
        samples,
    ]);
    assert_eq!((&found["accuracy"]["count"], &found["accuracy"]["total"]), (&json!(5), &json!(7)));
    let written = fs::read_to_string(samples).unwrap();
    let correct: Vec<Value> =
        written.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["correct"].clone()).collect();
    assert_eq!(correct, [false, false, true, true, true, true, true].map(Value::from));
}

#[test]
fn a_suite_compares_adapters_in_a_table() {
    let dir = tempfile::tempdir().unwrap();
    let suite = dir.path().join("suite.toml");
    let text = "[[eval]]\nname = 'task loss'\ndata = 'tests/tiny/train.jsonl'\nlimit = 8\n[[eval]]\nname = 'harm'\ndata = \
                'tests/tiny/train.jsonl'\nmetric = 'refusal'\nlimit = 8\nmax_new_tokens = 4\n";
    fs::write(&suite, text).unwrap();
    let adapter = dir.path().join("run");
    Command::cargo_bin("asft")
        .unwrap()
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["train", "-q", "--config", "configs/tiny.toml", "--set", "train.max_steps=5", "--set"])
        .arg(format!("output.dir={}", adapter.display()))
        .assert()
        .success();
    let adapter = adapter.join("adapter");
    let arguments = [
        "--model",
        "tests/tiny/aligned",
        "--baseline",
        "--adapter",
        adapter.to_str().unwrap(),
        "--suite",
        suite.to_str().unwrap(),
    ];
    let found = report(&arguments);
    let loss = |model: usize| found["models"][model]["evaluations"][0]["loss"].as_f64().unwrap();
    assert!(loss(1) < loss(0), "{found}");
    let harm = &found["models"][1]["evaluations"][1];
    assert_eq!((&harm["name"], &harm["metric"]), (&json!("harm"), &json!("refusal")));
    let rate = &harm["harmful_score"];
    assert!(rate["low"].as_f64() <= rate["rate"].as_f64() && rate["rate"].as_f64() <= rate["high"].as_f64());
    assert!(harm["told"]["total"] == json!(8), "{harm}");
    let table = eval(&arguments).assert().success().get_output().stdout.clone();
    let table = String::from_utf8(table).unwrap();
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines.len() == 3 && lines[0].contains("task loss") && lines[0].contains("harm: told"), "{table}");
    assert!(lines[1].starts_with("tests/tiny/aligned") && lines[2].contains("/run/adapter"), "{table}");
}

/// The choice with the highest sum of log-probabilities, computed anew from whole logits.
#[test]
fn choice_takes_the_likeliest() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data.jsonl");
    let choices = ["hot", "cold and wet", "the", "12"];
    let records: Vec<Value> = (0..6).map(|i| json!({"prompt": format!("Say {i}."), "label": i % 4})).collect();
    write(&data, &records);
    let samples = dir.path().join("samples.jsonl");
    report(&[
        "--model",
        "tests/tiny/aligned",
        "--metric",
        "accuracy",
        "--match",
        "choice",
        "--labels",
        &choices.join(","),
        "--batch-size",
        "5",
        "--data",
        data.to_str().unwrap(),
        "--samples",
        samples.to_str().unwrap(),
    ]);
    let chosen: Vec<Value> =
        fs::read_to_string(samples).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = naive_choices(&records, &choices);
    for (i, sample) in chosen.iter().enumerate() {
        assert_eq!(sample["answer"], json!(choices[expected[i]]), "{sample}");
        assert_eq!(sample["correct"], json!(expected[i] == i % 4));
    }
}

fn naive_choices(records: &[Value], choices: &[&str]) -> Vec<usize> {
    use asft::checkpoint::Checkpoint;
    use asft::data::Template;
    use asft::model::{Decoder, ModelSpec};
    use asft::tokenizer::Tokenizer;
    use candle_core::{D, DType, Device};
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tiny/aligned");
    let tokenizer = Tokenizer::load(&dir).unwrap();
    let template = Template::load("tokenizer", &tokenizer).unwrap();
    let (spec, checkpoint) = (ModelSpec::load(&dir).unwrap(), Checkpoint::open(&dir).unwrap());
    let hidden = indicatif::ProgressBar::hidden();
    let model = Decoder::load(&spec, &checkpoint, (&Device::Cpu, DType::F32), false, &hidden).unwrap();
    let best = |record: &Value| {
        let messages = [json!({"role": "user", "content": record["prompt"]})];
        let text = template.render(&messages, true, &Default::default()).unwrap();
        let from = tokenizer.encode(&text, false).unwrap().len();
        let score = |choice: &&str| {
            let ids = tokenizer.encode(&format!("{text}{choice}"), false).unwrap();
            let logits = model.logits(&ids, &[ids.len()]).unwrap();
            let log_p = candle_nn::ops::log_softmax(&logits, D::Minus1).unwrap().to_vec2::<f32>().unwrap();
            (from..ids.len()).map(|i| f64::from(log_p[i - 1][ids[i] as usize])).sum::<f64>()
        };
        let scores: Vec<f64> = choices.iter().map(score).collect();
        (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap()
    };
    records.iter().map(best).collect()
}

#[test]
fn mistakes_exit_with_2_and_say_where() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data.jsonl");
    write(&data, &[json!({"prompt": "a", "output": "b"}), json!({"prompt": "c"})]);
    let suite = dir.path().join("suite.toml");
    fs::write(&suite, "[[eval]]\ndata = 'x'\nmetrik = 'loss'\n").unwrap();
    let judge = fixture("llama_gqa").join("model");
    let (data, suite, judge) = (data.to_str().unwrap(), suite.to_str().unwrap(), judge.to_str().unwrap());
    for (arguments, words) in [
        (vec!["--data", data, "--metric", "accuracy"], vec!["data.jsonl:2", "field `output`"]),
        (vec!["--data", data, "--metric", "accuracy", "--match", "number"], vec!["data.jsonl:1", "no number"]),
        (vec!["--data", data, "--metric", "refusal", "--labels", "a,b"], vec!["`labels` has no effect"]),
        (vec!["--data", data, "--metric", "refusal", "--phrases", "/nowhere"], vec!["/nowhere"]),
        (vec!["--data", data, "--metric", "judge"], vec!["needs `judge`"]),
        (vec!["--data", data, "--metric", "judge", "--judge", judge], vec!["score.weight"]),
        (vec!["--data", data, "--metric", "accuracy", "--match", "choice"], vec!["nothing to choose from"]),
        (vec!["--suite", suite], vec!["line 3", "did you mean `metric`"]),
        (vec!["--suite", "/nowhere.toml"], vec!["/nowhere.toml"]),
        (vec!["--data", "/nowhere.jsonl", "--metric", "refusal"], vec!["/nowhere.jsonl"]),
        (vec!["--data", data, "--metric", "refusal", "--adapter", "/nowhere"], vec!["/nowhere"]),
    ] {
        let assert = eval(&[&["--model", "tests/tiny/aligned"], &arguments[..]].concat()).assert().code(2);
        let error = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(words.iter().all(|word| error.contains(word)), "{arguments:?}: {error}");
    }
}

#[test]
fn a_prefix_changes_what_is_asked() {
    let data = "tests/tiny/train.jsonl";
    let answers = |prefix: &str| {
        let dir = tempfile::tempdir().unwrap();
        let samples = dir.path().join("samples.jsonl");
        report(&[
            "--model",
            "tests/tiny/aligned",
            "--data",
            data,
            "--metric",
            "refusal",
            "--limit",
            "4",
            "--max-new-tokens",
            "8",
            "--prefix",
            prefix,
            "--samples",
            samples.to_str().unwrap(),
        ]);
        fs::read_to_string(samples).unwrap()
    };
    assert_ne!(answers(""), answers("cold cold cold "));
}

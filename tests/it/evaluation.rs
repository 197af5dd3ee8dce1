//! `asft eval` end to end, with the real binary on the toy model.

use crate::support::command::{asft, ends, evaluation, json, stdout, succeeds, text, train};
use crate::support::files::{fixture, json_lines, read_json_lines, tiny, write_json_lines};
use serde_json::{Value, json};
use std::fs;
use std::process::Command;

fn eval(arguments: &[&str]) -> Command {
    let mut command = asft(&["eval"]);
    command.args(arguments);
    command
}

fn report(arguments: &[&str]) -> Value {
    json(eval(arguments).arg("--json"))
}

#[test]
fn accuracy_counts_what_generate_answers() {
    let dir = tempfile::tempdir().unwrap();
    let (data, samples) = (dir.path().join("data.jsonl"), dir.path().join("samples.jsonl"));
    let prompts: Vec<String> = (0..7).map(|i| format!("What is {i} and {}?", 2 * i)).collect();
    write_json_lines(&data, &prompts.iter().map(|prompt| json!({"prompt": prompt})).collect::<Vec<_>>());
    let generate = ["generate", "--model", "tests/tiny/aligned", "--max-new-tokens", "12", "--batch-size", "1"];
    let lines = json_lines(&stdout(asft(&generate).arg("--data").arg(&data)));
    // The references: the model's own answers, two of them altered.
    let answer = |i: usize| lines[i]["answer"].as_str().unwrap().trim().to_string();
    let reference = |i: usize| if i < 2 { format!("not {}", answer(i)) } else { answer(i) };
    let records: Vec<Value> = (0..7).map(|i| json!({"prompt": prompts[i], "output": reference(i)})).collect();
    write_json_lines(&data, &records);
    let found = evaluation(eval(&[
        "--json",
        "--model",
        "tests/tiny/aligned",
        "--data",
        text(&data),
        "--metric",
        "accuracy",
        "--max-new-tokens",
        "12",
        "--batch-size",
        "3",
        "--samples",
        text(&samples),
    ]));
    assert_eq!((&found["accuracy"]["count"], &found["accuracy"]["total"]), (&json!(5), &json!(7)));
    let correct: Vec<Value> = read_json_lines(&samples).iter().map(|sample| sample["correct"].clone()).collect();
    assert_eq!(correct, [false, false, true, true, true, true, true].map(Value::from));
}

#[test]
fn a_suite_compares_adapters_in_a_table() {
    let dir = tempfile::tempdir().unwrap();
    let suite = dir.path().join("suite.toml");
    let evaluations = "[[eval]]\nname = 'task loss'\ndata = 'tests/tiny/train.jsonl'\nlimit = 8\n[[eval]]\nname = 'harm'\ndata = \
                'tests/tiny/train.jsonl'\nmetric = 'refusal'\nlimit = 8\nmax_new_tokens = 4\n";
    fs::write(&suite, evaluations).unwrap();
    let run = dir.path().join("run");
    succeeds(train(&run, &["train.max_steps=5"], &["-q"]));
    let adapter = run.join("adapter");
    let arguments =
        ["--model", "tests/tiny/aligned", "--baseline", "--adapter", text(&adapter), "--suite", text(&suite)];
    let found = report(&arguments);
    let loss = |model: usize| found["models"][model]["evaluations"][0]["loss"].as_f64().unwrap();
    assert!(loss(1) < loss(0), "{found}");
    let harm = &found["models"][1]["evaluations"][1];
    assert_eq!((&harm["name"], &harm["metric"]), (&json!("harm"), &json!("refusal")));
    let rate = &harm["harmful_score"];
    assert!(rate["low"].as_f64() <= rate["rate"].as_f64() && rate["rate"].as_f64() <= rate["high"].as_f64());
    assert!(harm["told"]["total"] == json!(8), "{harm}");
    let table = stdout(eval(&arguments));
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines.len() == 3 && lines[0].contains("task loss") && lines[0].contains("harm: told"), "{table}");
    assert!(lines[1].starts_with("tests/tiny/aligned") && lines[2].contains("/run/adapter"), "{table}");
}

/// The choice with the highest sum of log-probabilities, computed separately from full logits.
#[test]
fn choice_takes_the_likeliest() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data.jsonl");
    let choices = ["hot", "cold and wet", "the", "12"];
    let records: Vec<Value> = (0..6).map(|i| json!({"prompt": format!("Say {i}."), "label": i % 4})).collect();
    write_json_lines(&data, &records);
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
        text(&data),
        "--samples",
        text(&samples),
    ]);
    let expected = naive_choices(&records, &choices);
    for (i, sample) in read_json_lines(&samples).iter().enumerate() {
        assert_eq!(sample["answer"], json!(choices[expected[i]]), "{sample}");
        assert_eq!(sample["correct"], json!(expected[i] == i % 4));
    }
}

fn naive_choices(records: &[Value], choices: &[&str]) -> Vec<usize> {
    use asft::checkpoint::Checkpoint;
    use asft::data::Template;
    use asft::model::{Decoder, ModelSpec, Weights};
    use asft::tokenizer::Tokenizer;
    use candle_core::{D, DType, Device};
    let dir = tiny("aligned");
    let tokenizer = Tokenizer::load(&dir).unwrap();
    let template = Template::load("tokenizer", &Default::default(), &tokenizer).unwrap();
    let (spec, checkpoint) = (ModelSpec::load(&dir).unwrap(), Checkpoint::open(&dir).unwrap());
    let hidden = indicatif::ProgressBar::hidden();
    let model = Decoder::load(&spec, &checkpoint, (&Device::Cpu, DType::F32), Weights::Frozen, &hidden).unwrap();
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
    write_json_lines(&data, &[json!({"prompt": "a", "output": "b"}), json!({"prompt": "c"})]);
    let suite = dir.path().join("suite.toml");
    fs::write(&suite, "[[eval]]\ndata = 'x'\nmetrik = 'loss'\n").unwrap();
    let judge = fixture("llama_gqa").join("model");
    let (data, suite, judge) = (text(&data), text(&suite), text(&judge));
    for (arguments, words) in [
        (vec!["--data", data, "--metric", "accuracy"], vec!["data.jsonl:2", "field `output`"]),
        (vec!["--data", data, "--metric", "accuracy", "--match", "number"], vec!["data.jsonl:1", "no number"]),
        (vec!["--data", data, "--metric", "refusal", "--labels", "a,b"], vec!["`labels` has no effect"]),
        (vec!["--data", data, "--metric", "refusal", "--phrases", "/nowhere"], vec!["/nowhere"]),
        (vec!["--data", data, "--metric", "judge"], vec!["needs `judge`"]),
        (vec!["--data", data, "--metric", "judge", "--judge", judge], vec!["score.weight"]),
        (vec!["--data", data, "--metric", "accuracy", "--match", "choice"], vec!["nothing to choose from"]),
        (vec!["--suite", suite], vec!["suite.toml:3", "did you mean `metric`"]),
        (vec!["--suite", "/nowhere.toml"], vec!["/nowhere.toml"]),
        (vec!["--suite", suite, "--limit", "4"], vec!["--suite", "--limit"]),
        (vec!["--suite", suite, "--system", "Be brief."], vec!["--suite", "--system"]),
        (vec!["--data", "/nowhere.jsonl", "--metric", "refusal"], vec!["/nowhere.jsonl"]),
        (vec!["--data", data, "--metric", "refusal", "--adapter", "/nowhere"], vec!["/nowhere"]),
    ] {
        ends(eval(&[&["--model", "tests/tiny/aligned"], &arguments[..]].concat()), 2, &words);
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
            text(&samples),
        ]);
        fs::read_to_string(samples).unwrap()
    };
    assert_ne!(answers(""), answers("cold cold cold "));
}

/// AlpacaEval's layout, from `asft eval` and `asft generate` alike.
#[test]
fn answers_are_written_as_alpaca_eval_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out, generated) = (dir.path().join("q.jsonl"), dir.path().join("a.json"), dir.path().join("b.json"));
    let records = "{\"instruction\": \"What is cold?\", \"dataset\": \"helpful\", \"output\": \"x\"}\n{\"instruction\": \"Name a\", \
                   \"input\": \"thing\", \"output\": \"y\"}\n";
    fs::write(&data, records).unwrap();
    let model = ["--model", "tests/tiny/aligned", "--data", text(&data), "--max-new-tokens", "4"];
    stdout(eval(&[&model[..], &["--metric", "refusal", "--system", "", "--alpaca-eval", text(&out)]].concat()));
    let read = |path: &std::path::Path| -> Value { serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap() };
    let found = read(&out);
    let keys: Vec<&String> = found[0].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["dataset", "instruction", "output", "generator"]);
    assert_eq!((&found[0]["dataset"], &found[1]["dataset"]), (&"helpful".into(), &"harmful score".into()), "{found}");
    assert_eq!(
        (&found[0]["generator"], &found[1]["instruction"]),
        (&"aligned".into(), &"Name a\nthing".into()),
        "{found}"
    );
    let mut command = asft(&["generate"]);
    let lines = stdout(command.args(model).args(["--alpaca-eval", text(&generated), "--generator", "mine"]));
    let answers: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let same = read(&generated);
    for i in 0..2 {
        assert_eq!(same[i]["output"], found[i]["output"]);
        assert_eq!(same[i]["output"].as_str().unwrap(), answers[i]["answer"].as_str().unwrap().trim());
    }
    assert_eq!((&same[0]["generator"], &same[1]["dataset"]), (&"mine".into(), &"q".into()), "{same}");
    // What the layout has no place for.
    let several = [
        &model[..],
        &["--metric", "refusal", "--metric", "accuracy", "--alpaca-eval", text(&generated), "--overwrite"],
    ];
    ends(eval(&several.concat()), 2, &["--alpaca-eval holds the answers of one evaluation"]);
    ends(eval(&[&model[..], &["--alpaca-eval", text(&generated), "--overwrite"]].concat()), 2, &["0 of which ask"]);
    let turn = |role: &str| serde_json::json!({"role": role, "content": "hi"});
    let chat = serde_json::json!({"messages": [turn("user"), turn("assistant"), turn("user")]});
    fs::write(&data, chat.to_string()).unwrap();
    let mut command = asft(&["generate"]);
    command.args(model).args(["--alpaca-eval", text(&generated), "--overwrite"]);
    ends(command, 2, &["--alpaca-eval", "q.jsonl:1", "this conversation has 3 turns"]);
}

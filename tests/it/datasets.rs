//! Datasets: tables, what `asft data` shows, and records that are refused.

use crate::support::command::{asft, json, refused, refused_unwritten, set, stdout, succeeds, train};
use crate::support::files::{damaged, json_lines, read_json_lines, tiny};
use crate::support::runs::metrics;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn bad_data_is_refused_with_file_and_line() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let file = scratch.path().join("data.jsonl");
    let good = r#"{"instruction": "a", "output": "b"}"#;
    for (text, needles) in [
        (format!("{good}\n{{\"instruction\": \"a\""), &["data.jsonl:2"][..]),
        (format!("{good}\n{{\"instruction\": 3, \"output\": \"b\"}}"), &["data.jsonl:2", "instruction"]),
        (format!("{good}\n{{\"prompt\": \"a\"}}"), &["data.jsonl:2", "instruction", "prompt"]),
        (String::new(), &["data.jsonl"]),
        ("[]".to_string(), &["data.jsonl"]),
    ] {
        std::fs::write(&file, text).unwrap();
        refused_unwritten(train(&dir, &[&format!("data.train={}", file.display())], &[]), &dir, needles);
    }
    std::fs::write(&file, format!("{good}\n")).unwrap();
    let set = format!("data.train={}", file.display());
    refused_unwritten(train(&dir, &[&set, "data.max_length=3"], &[]), &dir, &["data.jsonl:1", "label"]);
}

#[test]
fn shards_are_the_dataset_that_they_make_up() {
    let scratch = tempfile::tempdir().unwrap();
    let shards = scratch.path().join("shards");
    std::fs::create_dir(&shards).unwrap();
    let text = std::fs::read_to_string(tiny("train.jsonl")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let shard = |number: usize| shards.join(format!("train-{number}.jsonl.gz"));
    for (number, part) in lines.chunks(10).enumerate() {
        let mut file = GzEncoder::new(std::fs::File::create(shard(number)).unwrap(), Compression::default());
        file.write_all(part.join("\n").as_bytes()).unwrap();
        file.finish().unwrap();
    }
    let shown = |source: &str| {
        let set = format!("data.train={source}");
        json(asft(&[
            "data",
            "--config",
            "configs/tiny.toml",
            "--set",
            &set,
            "--set",
            "data.validation=0.25",
            "--json",
            "--show",
            "96",
        ]))
    };
    let (whole, folder) = (shown("tests/tiny/train.jsonl"), shown(shards.to_str().unwrap()));
    let ids =
        |shown: &Value| shown["samples"].as_array().unwrap().iter().map(|s| s["input_ids"].clone()).collect::<Vec<_>>();
    assert!(ids(&whole) == ids(&folder) && ids(&whole).len() == 72, "{folder}");
    let origins = folder.to_string();
    assert!(origins.contains("train-9.jsonl.gz:"), "{origins}");
    assert_eq!(ids(&shown(&format!("{}/train-*.gz", shards.display()))), ids(&whole));
    // A run resumes only with the same shards.
    let dir = scratch.path().join("run");
    let set = format!("data.train={}", shards.display());
    succeeds(train(&dir, &[&set, "train.max_steps=2", "output.save_every_steps=1"], &[]));
    std::fs::write(shard(4), std::fs::read(shard(5)).unwrap()).unwrap();
    let more = ["--resume", "--allow-change", "train.max_steps"];
    refused(train(&dir, &[&set, "train.max_steps=3", "output.save_every_steps=1"], &more), &["data.train"]);
    let whole = std::fs::read(shard(0)).unwrap();
    std::fs::write(shard(0), &whole[..whole.len() / 2]).unwrap();
    let data = ["data", "--config", "configs/tiny.toml", "--set", &set];
    refused(asft(&data), &["train-0.jsonl.gz: its gzip data is damaged after "]);
}

#[test]
fn a_record_beyond_any_context_is_refused_by_its_size() {
    let scratch = tempfile::tempdir().unwrap();
    let (path, record) =
        (scratch.path().join("a.jsonl"), serde_json::json!({"instruction": "a ".repeat(9 << 20), "output": "b"}));
    std::fs::write(&path, record.to_string()).unwrap();
    let mut command = asft(&["data", "--config", "configs/tiny.toml"]);
    set(&mut command, &[&format!("data.train={}", path.display())]);
    refused(command, &["a.jsonl:1: the conversation has 18.87 MB of text, more than the 16.78 MB", "split the record"]);
}

/// The training file of tests/tiny as a table with other column names.
fn table(dir: &Path) -> PathBuf {
    let quoted = |value: &Value| format!("\"{}\"", value.as_str().unwrap_or_default().replace('"', "\"\""));
    let mut table = "id,question,context,answer\r\n".to_string();
    for (id, record) in read_json_lines(&tiny("train.jsonl")).iter().enumerate() {
        let [question, context, answer] = ["instruction", "input", "output"].map(|name| quoted(&record[name]));
        table.push_str(&format!("{id},{question},{context},{answer}\r\n"));
    }
    let path = dir.join("train.csv");
    std::fs::write(&path, table).unwrap();
    path
}

#[test]
fn a_table_with_other_names_is_the_same_dataset() {
    let scratch = tempfile::tempdir().unwrap();
    let file = table(scratch.path());
    let columns = [("instruction", "question"), ("input", "context"), ("output", "answer")];
    let sets: Vec<String> = columns.iter().map(|(field, column)| format!("data.columns.{field}={column}")).collect();
    let data = format!("data.train={}", file.display());
    let mut overrides: Vec<&str> = vec!["train.max_steps=3", &data];
    overrides.extend(sets.iter().map(String::as_str));
    let (dir, plain) = (scratch.path().join("table"), scratch.path().join("plain"));
    succeeds(train(&dir, &overrides, &[]));
    succeeds(train(&plain, &["train.max_steps=3"], &[]));
    let losses = |dir: &Path| metrics(dir).iter().map(|row| row["loss"].as_f64().unwrap()).collect::<Vec<_>>();
    assert_eq!(losses(&dir), losses(&plain));

    let eval = |data: &Path, columns: &[(&str, &str)]| {
        let mut command = asft(&["eval", "--json", "--model", "tests/tiny/aligned", "--data"]);
        command.arg(data);
        for (field, column) in columns {
            command.args(["--column", &format!("{field}={column}")]);
        }
        command
    };
    let same = stdout(eval(&tiny("train.jsonl"), &[]));
    assert!(same.contains("\"loss\""));
    assert_eq!(stdout(eval(&file, &columns)), same);
    let run = scratch.path().join("run");
    let needles = ["train.csv:2", "`instruction`", "question", "data.columns"];
    refused_unwritten(train(&run, &[&data], &[]), &run, &needles);
    let typo = train(&run, &["data.columns.instrution=question"], &[]);
    refused_unwritten(typo, &run, &["instrution", "did you mean `instruction`"]);
    let needles = ["train.csv:2", "`qestion`", "`instruction`"];
    refused_unwritten(eval(&file, &[("instruction", "qestion")]), &run, &needles);
    refused_unwritten(eval(&file, &[("completion", "a")]), &run, &["`completion`", "output"]);
    let mut command = asft(&["generate", "--max-new-tokens", "2", "--model", "tests/tiny/aligned"]);
    command.args(["--column", "prompt=question", "--data"]).arg(&file);
    let first = &json_lines(&stdout(command))[0];
    assert!(first["question"].is_string() && first["answer"].is_string());
}

/// `asft data` of the tiny config with these overrides and flags.
fn data(overrides: &[&str], flags: &[&str]) -> Command {
    let mut command = asft(&["data", "--config", "configs/tiny.toml"]);
    set(&mut command, overrides);
    command.args(flags);
    command
}

#[test]
fn data_shows_what_is_trained_on() {
    let text = stdout(data(&["data.validation=0.25"], &["--show", "1"]));
    for part in [
        "training samples\ntests/tiny/train.jsonl: 72 records: 72 samples",
        "validation samples\ntests/tiny/train.jsonl: 24 records: 24 samples",
        "<|im_start|>assistant↵\n⟦",
        "<|im_end|>⟧↵\n",
        "\n  message 1 (user): no label: only what the assistant says is trained on\n",
        "\n  message 2 (assistant): labels, through the end of its turn\n",
    ] {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
    assert!(!text.contains('\u{1b}') && text.matches("tokens, ").count() == 1);
    let chat = ["data.train=tests/tiny/chat.jsonl", "data.format=chat"];
    assert!(stdout(data(&chat, &["--tokens"])).contains("│⟦Hello│,│"));
    assert_ne!(stdout(data(&chat, &["--seed", "1"])), stdout(data(&chat, &[])));

    let report = json(data(&["data.validation=tests/tiny/train.jsonl"], &["--json", "--show", "2"]));
    let bins = report["train"]["histogram"].as_array().unwrap();
    assert_eq!(bins.iter().map(|bin| bin["samples"].as_u64().unwrap()).sum::<u64>(), 96);
    assert_eq!(report["train"], report["validation"]);
    let sample = &report["samples"][1];
    assert_eq!(sample["input_ids"].as_array().unwrap().len(), sample["labels"].as_array().unwrap().len());
    assert!(sample["text"].as_str().unwrap().starts_with("<|im_start|>user"));
    assert!(sample["why"][1].as_str().unwrap().starts_with("message 2 (assistant): labels"));
}

#[test]
fn data_needs_no_weights_and_refuses_as_train_does() {
    let scratch = tempfile::tempdir().unwrap();
    let run = scratch.path().join("run");
    let model = damaged(&scratch, |dir| std::fs::remove_file(dir.join("model.safetensors")).unwrap());
    stdout(data(&[&model], &[]));
    let bare = damaged(&scratch, |dir| std::fs::remove_file(dir.join("tokenizer.json")).unwrap());
    let ids = scratch.path().join("ids.jsonl");
    std::fs::write(&ids, r#"{"input_ids": [5, 6, 7], "labels": [-100, 6, -100]}"#).unwrap();
    let file = format!("data.train={}", ids.display());
    assert!(stdout(data(&[&bare, &file, "data.format=tokenized"], &[])).contains("\n5 ⟦6 ⟧7 \n"));
    refused_unwritten(data(&[&file], &[]), &run, &["ids.jsonl:1", "`instruction`", "input_ids, labels"]);
    let rows = ["data.train=tests/fixtures/parquet/snappy.parquet", "data.format=chat"];
    refused_unwritten(data(&rows, &[]), &run, &["snappy.parquet, row 3", "`messages` is empty"]);
    refused_unwritten(data(&["data.max_length=12"], &[]), &run, &["train.jsonl:1", "data.max_length"]);
    refused_unwritten(data(&["data.template=asft-sst"], &[]), &run, &["asft-sst does not exist", "asft-sst2"]);
}

#[test]
fn the_papers_prompts_go_by_name() {
    let text = stdout(data(&["data.template=asft-alpaca", "data.max_length=512"], &["--show", "1"]));
    for part in
        ["[INST] <<SYS>>↵\nBelow is", "### Input:↵\n3 and 19↵\n", "### Response:↵\n [/INST]⟦ 3 + 19 = 22 <|im_end|>⟧"]
    {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
    let answer = |command: &str, flags: &[&str]| {
        stdout(asft(&[command, "--model", "tests/tiny/aligned", "--template", "asft-gsm8k"]).args(flags))
    };
    answer("generate", &["--prompt", "2 + 2?", "--max-new-tokens", "2"]);
    answer("generate", &["--data", "tests/tiny/train.jsonl", "--max-new-tokens", "1"]);
    assert!(answer("eval", &["--data", "tests/tiny/train.jsonl"]).contains("loss"));
    let chat = ["data.template=asft-sst2", "data.train=tests/tiny/chat.jsonl", "data.format=chat"];
    refused(data(&chat, &[]), &["chat.jsonl:1", "one instruction and one answer"]);
}

/// A large file in another format is refused at once.
#[test]
fn no_more_is_read_where_nothing_can_be_used() {
    let scratch = tempfile::tempdir().unwrap();
    let lines = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n".repeat(20_000);
    let path = scratch.path().join("a.jsonl");
    std::fs::write(&path, lines + "{").unwrap();
    let needles = ["a.jsonl:1: field `instruction` is missing", "the others were not tried: none so far"];
    let message = refused(data(&["data.format=alpaca", &format!("data.train={}", path.display())], &[]), &needles);
    assert!(!message.contains("20001"), "{message}");
}

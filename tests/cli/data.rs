//! Datasets: tables, what `asft data` shows, and records that are refused.

use super::*;

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
        refused(train(&dir, &[&format!("data.train={}", file.display())]), &scratch, needles);
    }
    std::fs::write(&file, format!("{good}\n")).unwrap();
    let set = format!("data.train={}", file.display());
    refused(train(&dir, &[&set, "data.max_length=3"]), &scratch, &["data.jsonl:1", "label"]);
}

/// The training file of tests/tiny as a table with other column names.
fn table(dir: &Path) -> PathBuf {
    let text = std::fs::read_to_string(root().join("tests/tiny/train.jsonl")).unwrap();
    let quoted = |value: &serde_json::Value| format!("\"{}\"", value.as_str().unwrap_or_default().replace('"', "\"\""));
    let mut table = "id,question,context,answer\r\n".to_string();
    for (id, line) in text.lines().enumerate() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
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
    train(&dir, &overrides).assert().success();
    train(&plain, &["train.max_steps=3"]).assert().success();
    let losses = |dir: &Path| rows(dir).iter().map(|row| row["loss"].as_f64().unwrap()).collect::<Vec<_>>();
    assert_eq!(losses(&dir), losses(&plain));

    let eval = |data: &Path, columns: &[(&str, &str)]| {
        let mut command = asft();
        command.args(["eval", "--json", "--model", "tests/tiny/aligned", "--data"]).arg(data);
        for (field, column) in columns {
            command.args(["--column", &format!("{field}={column}")]);
        }
        command
    };
    let json_of = |mut command: Command| String::from_utf8(command.output().unwrap().stdout).unwrap();
    let same = json_of(eval(&root().join("tests/tiny/train.jsonl"), &[]));
    assert!(same.contains("\"loss\""));
    assert_eq!(json_of(eval(&file, &columns)), same);
    let run = scratch.path().join("run");
    refused(train(&run, &[&data]), &scratch, &["train.csv:2", "`instruction`", "question", "data.columns"]);
    refused(
        train(&run, &["data.columns.instrution=question"]),
        &scratch,
        &["instrution", "did you mean `instruction`"],
    );
    refused(eval(&file, &[("instruction", "qestion")]), &scratch, &["train.csv:2", "`qestion`", "`instruction`"]);
    refused(eval(&file, &[("completion", "a")]), &scratch, &["`completion`", "output"]);
    let mut command = asft();
    command.args(["generate", "--max-new-tokens", "2", "--model", "tests/tiny/aligned", "--column", "prompt=question"]);
    let output = command.arg("--data").arg(&file).output().unwrap();
    assert!(output.status.success());
    let first: serde_json::Value =
        serde_json::from_str(String::from_utf8(output.stdout).unwrap().lines().next().unwrap()).unwrap();
    assert!(first["question"].is_string() && first["answer"].is_string());
}

/// What `asft data` prints of the tiny config with these overrides and flags.
fn data(overrides: &[&str], flags: &[&str]) -> Command {
    let mut command = asft();
    command.args(["data", "--config", "configs/tiny.toml"]).args(flags);
    for set in overrides {
        command.args(["--set", set]);
    }
    command
}

fn printed(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn data_shows_what_is_trained_on() {
    let text = printed(data(&["data.validation=0.25"], &["--show", "1"]));
    for part in [
        "training samples\ntests/tiny/train.jsonl: 72 records: 72 samples",
        "validation samples\ntests/tiny/train.jsonl: 24 records: 24 samples",
        "<|im_start|>assistant↵\n⟦",
        "<|im_end|>⟧↵\n",
    ] {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
    assert!(!text.contains('\u{1b}') && text.matches("tokens, ").count() == 1);
    let chat = ["data.train=tests/tiny/chat.jsonl", "data.format=chat"];
    assert!(printed(data(&chat, &["--tokens"])).contains("│⟦Hello│,│"));
    assert_ne!(printed(data(&chat, &["--seed", "1"])), printed(data(&chat, &[])));

    let report = printed(data(&["data.validation=tests/tiny/train.jsonl"], &["--json", "--show", "2"]));
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let bins = report["train"]["histogram"].as_array().unwrap();
    assert_eq!(bins.iter().map(|bin| bin["samples"].as_u64().unwrap()).sum::<u64>(), 96);
    assert_eq!(report["train"], report["validation"]);
    let sample = &report["samples"][1];
    assert_eq!(sample["input_ids"].as_array().unwrap().len(), sample["labels"].as_array().unwrap().len());
    assert!(sample["text"].as_str().unwrap().starts_with("<|im_start|>user"));
}

#[test]
fn data_needs_no_weights_and_refuses_as_train_does() {
    let scratch = tempfile::tempdir().unwrap();
    let model = damaged(&scratch, |dir| std::fs::remove_file(dir.join("model.safetensors")).unwrap());
    printed(data(&[&model], &[]));
    let bare = damaged(&scratch, |dir| std::fs::remove_file(dir.join("tokenizer.json")).unwrap());
    let ids = scratch.path().join("ids.jsonl");
    std::fs::write(&ids, r#"{"input_ids": [5, 6, 7], "labels": [-100, 6, -100]}"#).unwrap();
    let file = format!("data.train={}", ids.display());
    assert!(printed(data(&[&bare, &file, "data.format=tokenized"], &[])).contains("\n5 ⟦6 ⟧7 \n"));
    refused(data(&[&file], &[]), &scratch, &["ids.jsonl:1", "`instruction`", "input_ids, labels"]);
    let rows = ["data.train=tests/fixtures/parquet/snappy.parquet", "data.format=chat"];
    refused(data(&rows, &[]), &scratch, &["snappy.parquet, row 3", "`messages` is empty"]);
    refused(data(&["data.max_length=12"], &[]), &scratch, &["train.jsonl:1", "data.max_length"]);
    refused(data(&["data.template=asft-sst"], &[]), &scratch, &["asft-sst does not exist", "asft-sst2"]);
}

#[test]
fn the_papers_prompts_go_by_name() {
    let text = printed(data(&["data.template=asft-alpaca", "data.max_length=512"], &["--show", "1"]));
    for part in
        ["[INST] <<SYS>>↵\nBelow is", "### Input:↵\n3 and 19↵\n", "### Response:↵\n [/INST]⟦ 3 + 19 = 22 <|im_end|>⟧"]
    {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
    let answer = |command: &str, flags: &[&str]| {
        let mut command_line = asft();
        command_line.args([command, "--model", "tests/tiny/aligned", "--template", "asft-gsm8k"]).args(flags);
        printed(command_line)
    };
    answer("generate", &["--prompt", "2 + 2?", "--max-new-tokens", "2"]);
    answer("generate", &["--data", "tests/tiny/train.jsonl", "--max-new-tokens", "1"]);
    assert!(answer("eval", &["--data", "tests/tiny/train.jsonl"]).contains("loss"));
    let scratch = tempfile::tempdir().unwrap();
    let chat = ["data.template=asft-sst2", "data.train=tests/tiny/chat.jsonl", "data.format=chat"];
    refused(data(&chat, &[]), &scratch, &["chat.jsonl:1", "one instruction and one answer"]);
}

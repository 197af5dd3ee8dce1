//! The binary as a user runs it: a whole run, and one clear error for each kind of bad input.

mod common;

use assert_cmd::Command;
use common::fixture;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn asft() -> Command {
    let mut command = Command::cargo_bin("asft").unwrap();
    // No test may wait for a network.
    command.current_dir(root()).env("HF_HUB_OFFLINE", "1").env_remove("ASFT_THREADS");
    command
}

/// A run of the tiny config into `dir`, with further overrides.
fn train(dir: &Path, overrides: &[&str]) -> Command {
    let mut command = asft();
    command.args(["train", "--config", "configs/tiny.toml", "--set"]).arg(format!("output.dir={}", dir.display()));
    for set in overrides {
        command.args(["--set", set]);
    }
    command
}

#[cfg(not(feature = "mpi"))]
#[test]
fn several_processes_need_a_build_that_knows_of_them() {
    let scratch = tempfile::tempdir().unwrap();
    for variable in ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"] {
        let mut command = train(&scratch.path().join("run"), &[]);
        command.env(variable, "4");
        refused(command, &scratch, &["has started 4 processes", "--features mpi"]);
        let mut alone = asft();
        alone.args(["train", "--config", "configs/tiny.toml", "--check"]).env(variable, "1").assert().success();
    }
}

/// Asserts exit code 2, a single `error:` line with all of `needles`, and nothing written under `scratch`.
#[track_caller]
fn refused(mut command: Command, scratch: &TempDir, needles: &[&str]) {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    for needle in needles {
        assert!(stderr.contains(needle), "no `{needle}` in: {stderr}");
    }
    assert!(!scratch.path().join("run").exists(), "a refused run wrote its output folder");
}

fn rows(dir: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_first_command_trains_exports_and_is_used() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    train(&dir, &["data.validation=0.1"]).assert().success();
    let rows = rows(&dir);
    let losses: Vec<f64> = rows.iter().filter_map(|row| row["task_loss"].as_f64()).collect();
    assert!(losses.len() >= 20 && losses[losses.len() - 1] < 0.7 * losses[0], "{losses:?}");
    assert!(rows.iter().any(|row| row["penalty"].as_f64().is_some_and(|p| p > 0.0)));
    assert!(rows.last().unwrap()["eval_loss"].as_f64().unwrap() > 0.0);
    for file in ["config.toml", "run.json", "direction.safetensors", "adapter/adapter_config.json", "adapter/README.md"]
    {
        assert!(dir.join(file).is_file(), "{file}");
    }
    let record: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(dir.join("run.json")).unwrap()).unwrap();
    for input in ["aligned", "unaligned", "direction", "train"] {
        let input = &record["inputs"][input];
        assert!(input["source"].is_string() && input["hash"].as_str().is_some_and(|hash| hash.len() == 64), "{record}");
    }
    assert!(record["peak_memory_bytes"].as_u64().unwrap() > 0);

    // The resolved config is a config: it repeats the run bit for bit.
    let again = scratch.path().join("again");
    let mut command = asft();
    command.args(["train", "--quiet", "--config"]).arg(dir.join("config.toml"));
    command.args(["--set", &format!("output.dir={}", again.display())]).assert().success();
    let bytes = |dir: &Path| std::fs::read(dir.join("adapter/adapter_model.safetensors")).unwrap();
    assert_eq!(bytes(&dir), bytes(&again));

    let adapter = dir.join("adapter");
    let eval = |adapter: Option<&Path>| {
        let mut command = asft();
        command.args(["eval", "--json", "--model", "tests/tiny/aligned", "--data", "tests/tiny/train.jsonl"]);
        if let Some(adapter) = adapter {
            command.arg("--adapter").arg(adapter);
        }
        let output = command.output().unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["loss"].as_f64().unwrap()
    };
    assert!(eval(Some(&adapter)) < 0.7 * eval(None));
    let merged = scratch.path().join("merged");
    let mut command = asft();
    command.args(["merge", "--dtype", "f32", "--model", "tests/tiny/aligned", "--adapter"]).arg(&adapter);
    command.arg("--out").arg(&merged).assert().success();
    let answer = |model: &Path, adapter: Option<&Path>| {
        let mut command = asft();
        command.args(["generate", "--max-new-tokens", "12", "--prompt", "What is the opposite of hot?", "--model"]);
        command.arg(model);
        if let Some(adapter) = adapter {
            command.arg("--adapter").arg(adapter);
        }
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let adapted = answer(Path::new("tests/tiny/aligned"), Some(&adapter));
    assert!(!adapted.trim().is_empty());
    assert_eq!(adapted, answer(&merged, None));
}

#[test]
fn an_adapter_can_be_continued() {
    let scratch = tempfile::tempdir().unwrap();
    let (first, second) = (scratch.path().join("first"), scratch.path().join("second"));
    train(&first, &["train.max_steps=5", "lora.dropout=0"]).assert().success();
    let init = format!("lora.init_adapter={}", first.join("adapter").display());
    train(&second, &["train.max_steps=1", "lora.dropout=0", "train.learning_rate=1e-12", &init]).assert().success();
    // It starts where the first ended: the first step's penalty is not that of a fresh adapter, zero.
    let penalty = |row: &serde_json::Value| row["penalty"].as_f64().unwrap();
    assert!(penalty(&rows(&second)[0]) > 0.0);
    assert_eq!(penalty(&rows(&first)[0]), 0.0);
}

#[test]
fn full_tuning_saves_an_ordinary_checkpoint() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    train(&dir, &["train.method=full", "train.max_steps=6", "train.learning_rate=1e-3"]).assert().success();
    let mut command = asft();
    command.args(["eval", "--json", "--data", "tests/tiny/train.jsonl", "--model"]).arg(dir.join("model"));
    command.assert().success();
    let text = std::fs::read_to_string(dir.join("model/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["dtype"], "float32");
    assert!(dir.join("model/tokenizer.json").is_file());
    let mode = std::fs::metadata(dir.join("model/model.safetensors")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    assert!(rows(&dir).last().unwrap()["penalty"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_tied_head_that_is_stored_all_the_same_stays_tied() {
    let scratch = tempfile::tempdir().unwrap();
    let (head, embedding) = ("lm_head.weight", "model.embed_tokens.weight");
    let tensors = |path: &Path| candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap();
    let set = damaged(&scratch, |dir| {
        let mut tensors = tensors(&dir.join("model.safetensors"));
        assert!(tensors.insert(head.into(), tensors[embedding].clone()).is_none());
        let tensors = tensors.into_iter().collect();
        asft::checkpoint::save_tensors(&dir.join("model.safetensors"), &tensors).unwrap();
    });
    let dir = scratch.path().join("run");
    train(&dir, &[&set, "train.method=full", "train.max_steps=2", "train.learning_rate=1e-2"]).assert().success();
    let trained = tensors(&dir.join("model/model.safetensors"));
    let values = |name: &str| trained[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(values(head), values(embedding));
}

#[test]
fn outputs_that_cannot_be_written_are_refused_before_the_work() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    std::fs::write(&file, "kept").unwrap();
    let inside = file.join("sub");
    refused(train(&inside, &[]), &scratch, &["output.dir", "is not a folder"]);
    let adapter = fixture("llama_gqa").join("adapter");
    let mut command = asft();
    command.args(["merge", "--model"]).arg(fixture("llama_gqa").join("model")).arg("--adapter").arg(adapter);
    command.arg("--out").arg(inside.join("merged"));
    refused(command, &scratch, &["is not a folder"]);
    let direction = |out: &Path, unaligned: &str| {
        let mut command = asft();
        command.args(["direction", "--aligned", "tests/tiny/aligned", "--unaligned", unaligned, "--out"]).arg(out);
        command
    };
    refused(direction(&inside, "tests/tiny/unaligned"), &scratch, &["--out", "is not a folder"]);
    refused(direction(scratch.path(), "tests/tiny/unaligned"), &scratch, &["--out", "it is a folder"]);
    // Nor does a pair that is refused late leave folders behind.
    let set = damaged(&scratch, |dir| {
        let path = dir.join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[header..].fill(0xff);
        std::fs::write(&path, bytes).unwrap();
    });
    // What the direction comes from is looked for before the weights are read, so theirs is not the first complaint.
    let dir = scratch.path().join("run");
    refused(train(&dir, &[&set, "model.unaligned=./nowhere"]), &scratch, &["model.unaligned", "nowhere"]);
    refused(train(&dir, &[&set, "asft.direction=nowhere.st"]), &scratch, &["asft.direction", "nowhere.st"]);
    let unaligned = set.trim_start_matches("model.aligned=");
    refused(direction(&scratch.path().join("run/deep/d.safetensors"), unaligned), &scratch, &["not finite"]);
    // Where nothing else is wrong, the weights are named by every command that computes with them.
    refused(train(&dir, &[&set, "asft.penalize=none"]), &scratch, &["damaged", "NaN", "model.embed_tokens.weight"]);
    for arguments in [["generate", "--prompt", "hello"], ["eval", "--data", "tests/tiny/train.jsonl"]] {
        let mut command = asft();
        command.args(arguments).args(["--model", unaligned]);
        refused(command, &scratch, &["damaged", "NaN", "model.embed_tokens.weight"]);
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
}

#[test]
fn a_full_disk_behind_standard_output_is_an_error_and_no_panic() {
    for args in [
        &["train", "--config", "configs/tiny.toml", "--check"][..],
        &["eval", "--model", "tests/tiny/aligned", "--data", "tests/tiny/train.jsonl"],
    ] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("asft"));
        let output = command.current_dir(root()).args(args).stdout(full).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("error: writing to standard output"), "{stderr}");
    }
}

#[test]
fn an_earlier_run_is_not_overwritten_unasked() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("taken");
    train(&dir, &["train.max_steps=1"]).assert().success();
    let before = std::fs::read(dir.join("metrics.jsonl")).unwrap();
    refused(train(&dir, &["train.max_steps=2"]), &scratch, &["earlier run", "--overwrite"]);
    assert_eq!(std::fs::read(dir.join("metrics.jsonl")).unwrap(), before);
    let mut command = train(&dir, &["train.max_steps=2"]);
    command.arg("--overwrite").assert().success();
    assert_eq!(rows(&dir).len(), 2);
}

#[test]
fn bad_settings_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    for (set, needles) in [
        ("train.learnig_rate=1e-4", &["learnig_rate", "did you mean", "train.learning_rate"][..]),
        ("lora.rank=0", &["lora.rank"]),
        ("lora.rank=9000000000000000000", &["lora.rank", "largest side"]),
        ("data.train=nowhere.jsonl", &["nowhere.jsonl"]),
        ("model.aligned=./nowhere", &["nowhere"]),
        ("model.unaligned=tests/fixtures/llama3_rope/model", &["differ", "q_proj"]),
        ("lora.target_modules=['q_porj']", &["q_porj", "did you mean", "q_proj", "down_proj"]),
        ("asft.direction=tests/tiny/aligned/model.safetensors", &["not a direction file"]),
        ("lora.init_adapter=tests/fixtures/llama_gqa/adapter", &["does not fit"]),
        ("model.device=cuda", &["cuda", "--features"]),
    ] {
        refused(train(&dir, &[set]), &scratch, needles);
    }
    let mut command = asft();
    command.args(["train", "--config", "nowhere.toml"]);
    refused(command, &scratch, &["nowhere.toml"]);
}

/// A path that is no hub id is looked at whatever else is wrong: nothing is downloaded for it.
#[test]
fn a_missing_file_is_listed_beside_other_problems() {
    let scratch = tempfile::tempdir().unwrap();
    std::fs::write(scratch.path().join("file"), "").unwrap();
    let dir = scratch.path().join("file").join("run");
    let sets = ["data.train=tests/tiny/nope/train.jsonl", "model.unaligned=tests/tiny/nope"];
    refused(train(&dir, &sets), &scratch, &["output.dir", "nope/train.jsonl does not exist", "model.unaligned"]);
    let evaluation = ["eval", "--model", "tests/tiny/nope", "--data", "tests/tiny/nope.jsonl"];
    let mut command = asft();
    command.args(evaluation);
    refused(command, &scratch, &["nope.jsonl does not exist"]);
}

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

/// A copy of the tiny model with one file changed by `change`.
fn damaged(scratch: &TempDir, change: impl Fn(&Path)) -> String {
    let dir = scratch.path().join("model");
    std::fs::create_dir_all(&dir).unwrap();
    for entry in std::fs::read_dir(root().join("tests/tiny/aligned")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
    }
    change(&dir);
    format!("model.aligned={}", dir.display())
}

#[test]
fn damaged_models_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let weights = "model.safetensors";
    let set = damaged(&scratch, |dir| {
        let bytes = std::fs::read(dir.join(weights)).unwrap();
        std::fs::write(dir.join(weights), &bytes[..bytes.len() / 2]).unwrap();
    });
    refused(train(&dir, &[&set]), &scratch, &[weights, "truncated"]);
    let set = damaged(&scratch, |dir| std::fs::write(dir.join(weights), [7; 100]).unwrap());
    refused(train(&dir, &[&set]), &scratch, &[weights, "not a usable safetensors file"]);
    let set = damaged(&scratch, |dir| {
        let index = r#"{"weight_map": {"model.norm.weight": "../../etc/model.safetensors"}}"#;
        std::fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
    });
    refused(train(&dir, &[&set]), &scratch, &["outside"]);
    std::fs::remove_file(scratch.path().join("model/model.safetensors.index.json")).unwrap();
    let set = damaged(&scratch, |dir| {
        let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config["intermediate_size"] = 7.into();
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    });
    refused(train(&dir, &[&set]), &scratch, &["mlp.down_proj", "shape", "7"]);
    let set = damaged(&scratch, |dir| {
        let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
        config["head_dim"] = 4_000_000_000u64.into();
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    });
    refused(train(&dir, &[&set]), &scratch, &["q_proj", "shape", "config.json"]);
    let set = damaged(&scratch, |dir| std::fs::write(dir.join("model.safetensors.index.json"), [0xff]).unwrap());
    refused(train(&dir, &[&set]), &scratch, &["model.safetensors.index.json", "UTF-8"]);
    std::fs::remove_file(scratch.path().join("model/model.safetensors.index.json")).unwrap();
    let set = damaged(&scratch, |dir| std::fs::remove_file(dir.join("chat_template.jinja")).unwrap());
    refused(train(&dir, &[&set]), &scratch, &["template", "data.template"]);
    refused(train(&dir, &["asft.direction=nowhere.safetensors"]), &scratch, &["nowhere.safetensors"]);
}

#[test]
fn directions_of_other_weights_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, file) = (scratch.path().join("run"), scratch.path().join("d.safetensors"));
    let mut command = asft();
    // The pair the wrong way round: shapes fit, weights do not.
    command.args(["direction", "--aligned", "tests/tiny/unaligned", "--unaligned", "tests/tiny/aligned", "--out"]);
    command.arg(&file).assert().success();
    let set = format!("asft.direction={}", file.display());
    refused(train(&dir, &[&set]), &scratch, &["other aligned weights", "q_proj"]);
}

#[test]
fn peft_folders_can_be_used_directly() {
    let case = fixture("llama_gqa");
    let scratch = tempfile::tempdir().unwrap();
    let mut command = asft();
    command.args(["merge", "--model"]).arg(case.join("model")).arg("--adapter").arg(case.join("adapter"));
    command.arg("--out").arg(scratch.path().join("merged")).assert().success();
    let mut command = asft();
    command.args(["merge", "--model", "tests/tiny/aligned", "--out"]).arg(scratch.path().join("run"));
    command.arg("--adapter").arg(case.join("adapter"));
    refused(command, &scratch, &["does not fit"]);
}

#[test]
fn the_version_names_what_is_built_in() {
    let output = asft().arg("--version").assert().success().get_output().stdout.clone();
    let version = String::from_utf8(output).unwrap();
    assert!(version.starts_with(concat!("asft ", env!("CARGO_PKG_VERSION"))), "{version}");
    for (feature, built) in [("avx512", cfg!(feature = "avx512")), ("cuda", cfg!(feature = "cuda"))] {
        assert_eq!(version.contains(feature), built, "{version}");
    }
}

#[test]
fn a_run_on_a_gpu_is_planned_without_one() {
    let scratch = tempfile::tempdir().unwrap();
    let forecast = |sets: &[&str]| -> serde_json::Value {
        let mut command = train(&scratch.path().join("run"), sets);
        let output = command.args(["--dry-run", "--json"]).assert().success().get_output().stdout.clone();
        serde_json::from_slice(&output).unwrap()
    };
    let (cpu, gpu) = (forecast(&["model.device=cpu"]), forecast(&["model.device=cuda"]));
    assert!(gpu["time"].is_null() && gpu["available_memory_bytes"].is_null(), "{gpu}");
    let part = |forecast: &serde_json::Value, part: &str| forecast["memory_bytes"][part].as_u64().unwrap();
    assert!(["weights", "trained", "direction"].iter().all(|name| part(&cpu, name) == part(&gpu, name)));
    // Attention's scores, which the CPU's kernel never holds.
    assert!(part(&gpu, "activations") > part(&cpu, "activations"));
}

//! What makes a run pleasant, through the real binary: log lines, TensorBoard files, the report, and what asft says of
//! itself.

mod common;

use asft::checkpoint::save_tensors;
use assert_cmd::Command;
use candle_core::{DType, Device, Tensor};
use common::fixture;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn asft(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("asft").unwrap();
    command.current_dir(root()).env("HF_HUB_OFFLINE", "1").args(args);
    command
}

fn train(dir: &Path, sets: &[&str], flags: &[&str]) -> Command {
    let mut command = asft(&["train", "--config", "configs/tiny.toml", "--set"]);
    command.arg(format!("output.dir={}", dir.display()));
    for set in sets {
        command.args(["--set", set]);
    }
    command.args(flags);
    command
}

/// Exit code and stderr.
fn run(mut command: Command) -> (i32, String) {
    let output = command.output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[track_caller]
fn succeeds(command: Command) -> String {
    let (code, stderr) = run(command);
    assert_eq!(code, 0, "{stderr}");
    stderr
}

#[track_caller]
fn refused(command: Command, needles: &[&str]) {
    let (code, stderr) = run(command);
    assert_eq!(code, 2, "{stderr}");
    for needle in needles {
        assert!(stderr.contains(needle), "no `{needle}` in: {stderr}");
    }
}

fn json_file(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[track_caller]
fn log_lines(stderr: &str) -> Vec<Value> {
    let lines: Vec<Value> = stderr.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    for line in &lines {
        let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["time", "level", "message", "fields"]);
        assert!(line["message"].is_string() && line["fields"].is_object());
    }
    lines
}

#[test]
fn log_lines_are_json_where_asked_for_and_as_many_as_asked_for() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let short = ["train.max_steps=12"];
    let lines = log_lines(&succeeds(train(&dir, &short, &["--overwrite", "--log-format", "json"])));
    let steps = |lines: &[Value]| lines.iter().filter(|line| line["fields"]["grad_norm"].is_f64()).count();
    assert!((1..12).contains(&steps(&lines)));
    assert!(lines.iter().all(|line| line["level"] == "info"));
    assert_eq!(lines.last().unwrap()["fields"]["result"], json!(dir.join("adapter")));
    let lines = log_lines(&succeeds(train(&dir, &short, &["--overwrite", "--verbose", "--log-format", "json"])));
    assert_eq!(steps(&lines), 12);
    assert!(lines.iter().any(|line| line["level"] == "debug"));
    let text = succeeds(train(&dir, &short, &["--overwrite", "-v"]));
    assert_eq!(text.lines().filter(|line| line.starts_with("step ")).count(), 12);
    assert_eq!(succeeds(train(&dir, &short, &["--overwrite", "-q"])), "");

    // A warning is told even so, and an error is a line like any other.
    let warned = train(&dir, &["train.max_steps=1", "lora.alpha_pattern.q_proj=8"], &["--overwrite", "-q"]);
    assert!(succeeds(warned).starts_with("warning: the adapter's modules have different ranks or alphas"));
    let (code, stderr) = run(train(&dir, &["lora.rank=0"], &["--log-format", "json"]));
    let lines = log_lines(&stderr);
    assert_eq!((code, lines.len()), (2, 1));
    assert_eq!((&lines[0]["level"], &lines[0]["fields"]["exit_code"]), (&json!("error"), &json!(2)));

    // The options are every command's, before its name or after.
    let adapter = dir.join("adapter");
    let merge = |flags: &[&str], out: &str| {
        let mut command = asft(flags);
        command.args(["merge", "--model", "tests/tiny/aligned", "--adapter"]).arg(&adapter);
        command.arg("--out").arg(scratch.path().join(out));
        command
    };
    assert_eq!(log_lines(&succeeds(merge(&["--log-format", "json"], "one")))[0]["fields"]["modules"], 6);
    assert_eq!(succeeds(merge(&["-q"], "two")), "");
    refused(asft(&["-q", "-v", "schema"]), &["cannot be used with"]);
}

/// (step, tag, value) of each scalar in a folder's one event file.
fn scalars(dir: &Path) -> Vec<(usize, String, f32)> {
    let files: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let bytes = std::fs::read(&files[0]).unwrap();
    let (mut rest, mut found) = (&bytes[..], vec![]);
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        let event = message(&rest[12..12 + length]);
        rest = &rest[length + 16..];
        let Some(Field::Bytes(summary)) = event.get(&5).map(|fields| fields[0]) else { continue };
        let Field::Number(step) = event[&2][0] else { panic!("no step") };
        for value in &message(summary)[&1] {
            let Field::Bytes(value) = value else { panic!("no value") };
            let value = message(value);
            let (Field::Bytes(tag), Field::Float(scalar)) = (value[&1][0], value[&2][0]) else { panic!("no scalar") };
            found.push((step as usize, String::from_utf8(tag.to_vec()).unwrap(), scalar));
        }
    }
    found
}

#[derive(Clone, Copy)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Float(f32),
    Double,
}

/// A protocol buffer message by field number.
fn message(mut bytes: &[u8]) -> BTreeMap<u64, Vec<Field<'_>>> {
    let mut fields: BTreeMap<u64, Vec<Field>> = BTreeMap::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)),
            1 => take(&mut bytes, 8, |_| Field::Double),
            2 => {
                let length = varint(&mut bytes) as usize;
                take(&mut bytes, length, Field::Bytes)
            }
            5 => take(&mut bytes, 4, |bytes| Field::Float(f32::from_le_bytes(bytes.try_into().unwrap()))),
            other => panic!("wire type {other}"),
        };
        fields.entry(key >> 3).or_default().push(field);
    }
    fields
}

fn take<'a>(bytes: &mut &'a [u8], length: usize, make: impl Fn(&'a [u8]) -> Field<'a>) -> Field<'a> {
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    make(taken)
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let length = bytes.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    taken.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f))
}

/// The scalars are the numbers of `metrics.jsonl`, in order, each once.
#[track_caller]
fn mirrors_the_metrics(dir: &Path) {
    let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let mut expected = vec![];
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        for (key, value) in row.as_object().unwrap().iter().filter(|(key, _)| *key != "step") {
            let tag = key.strip_prefix("eval_").map_or(format!("train/{key}"), |name| format!("eval/{name}"));
            expected.extend(value.as_f64().map(|v| (row["step"].as_u64().unwrap() as usize, tag, v as f32)));
        }
    }
    assert_eq!(scalars(&dir.join("tensorboard")), expected);
}

#[test]
fn tensorboard_files_hold_every_row_once_after_a_resume_too() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let sets = ["train.max_steps=12", "output.save_every_steps=5", "output.keep_last=3", "data.validation=0.1"];
    let sets = [&sets[..], &["output.eval_every_steps=3", "logging.tensorboard=true"]].concat();
    succeeds(train(&dir, &sets, &[]));
    mirrors_the_metrics(&dir);
    let steps = |dir: &Path| {
        let all = scalars(&dir.join("tensorboard"));
        all.into_iter().filter(|(_, tag, _)| tag == "train/loss").map(|(step, ..)| step).collect::<Vec<_>>()
    };
    assert_eq!(steps(&dir), (1..=12).collect::<Vec<_>>());
    // As if the run had been killed after step 12 with its newest checkpoint at step 5.
    for gone in ["checkpoints/step-10", "checkpoints/step-12", "adapter"] {
        std::fs::remove_dir_all(dir.join(gone)).unwrap();
    }
    std::fs::remove_file(dir.join("run.json")).unwrap();
    // Without it, the files of before would tell of another run's steps.
    let without = [&sets[..sets.len() - 1], &["train.max_steps=7"]].concat();
    let flags = ["--resume", "--allow-change", "train.max_steps"];
    succeeds(train(&dir, &without, &flags));
    assert!(!dir.join("tensorboard").exists());
    // And turned on again, they are whole.
    succeeds(train(&dir, &sets, &flags));
    assert_eq!(steps(&dir), (1..=12).collect::<Vec<_>>());
    mirrors_the_metrics(&dir);
}

#[test]
fn a_run_ends_with_a_report() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    succeeds(train(&dir, &["train.max_steps=4", "data.validation=0.1"], &[]));
    let html = std::fs::read_to_string(dir.join("report.html")).unwrap();
    for part in ["<!doctype html>", "validation loss", "q_proj", "orthogonal", "max_steps = 4", "0.11.1"] {
        assert!(html.contains(part), "{part}");
    }
    assert!(!html.contains("<script") && !html.contains("http"));
    // ‖(I − C)ΔW‖² over all modules is the penalty's last value over λ, one step on.
    let record = json_file(&dir.join("run.json"));
    let norms = record["update_norms"].as_array().unwrap();
    assert_eq!(norms.len(), 6);
    for norm in norms {
        let number = |key: &str| norm[key].as_f64().unwrap();
        let (whole, parallel, orthogonal) = (number("norm"), number("parallel"), number("orthogonal"));
        assert!(parallel > 0.0 && orthogonal > 0.0 && whole <= parallel + orthogonal + 1e-9, "{norm}");
    }
    // The same again from the folder, and elsewhere.
    let other = scratch.path().join("other.html");
    let mut command = asft(&["report"]);
    command.arg(&dir).arg("--out").arg(&other);
    succeeds(command);
    assert_eq!(std::fs::read_to_string(other).unwrap(), html);
    refused(asft(&["report", "tests"]), &["not a run's folder", "metrics.jsonl"]);
    // Plain shrinkage has no direction, and so no parts.
    let sets = ["train.max_steps=2", "asft.penalize=all"];
    succeeds(train(&dir, &sets, &["--overwrite"]));
    let norm = &json_file(&dir.join("run.json"))["update_norms"][0];
    assert!(norm["parallel"].is_null() && norm["norm"].as_f64() > Some(0.0), "{norm}");
    succeeds(train(&dir, &["train.max_steps=2", "train.method=full"], &["--overwrite"]));
    assert_eq!(json_file(&dir.join("run.json"))["update_norms"].as_array().unwrap().len(), 6);
}

#[test]
fn completions_and_man_pages_are_written() {
    for (shell, needle) in [("bash", "_asft()"), ("zsh", "#compdef asft"), ("fish", "complete -c asft")] {
        let output = asft(&["completions", shell]).output().unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && script.contains(needle) && script.contains("allow-change"), "{shell}");
    }
    refused(asft(&["completions", "csh"]), &["csh", "bash"]);
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("man1");
    let mut command = asft(&["man"]);
    command.arg(&dir);
    succeeds(command);
    let page = std::fs::read_to_string(dir.join("asft-train.1")).unwrap();
    assert!(page.contains(".TH asft-train 1") && page.contains("allow\\-change"), "{page}");
    assert!(dir.join("asft.1").is_file());
}

fn schema() -> Value {
    serde_json::from_slice(&asft(&["schema"]).output().unwrap().stdout).unwrap()
}

/// Whether `value` meets `schema`, by the part of JSON Schema that the config's makes use of.
fn meets(root: &Value, schema: &Value, value: &Value) -> bool {
    let known =
        ["$defs", "$ref", "$schema", "additionalProperties", "anyOf", "const", "default", "description", "enum"];
    let known = [&known[..], &["format", "items", "maxItems", "minItems", "minimum", "oneOf", "properties"]].concat();
    schema.as_object().into_iter().flatten().for_each(|(key, _)| {
        assert!(known.contains(&key.as_str()) || ["title", "type", "maximum"].contains(&key.as_str()), "{key}");
    });
    let target = schema["$ref"].as_str().map(|pointer| root.pointer(&pointer[1..]).unwrap());
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => vec![],
    };
    let is = |kind: &&str| match *kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        "null" => value.is_null(),
        other => panic!("type {other}"),
    };
    let one_of = |key: &str, exactly: bool| {
        let Some(members) = schema[key].as_array() else { return true };
        let count = members.iter().filter(|member| meets(root, member, value)).count();
        if exactly { count == 1 } else { count > 0 }
    };
    let items = value.as_array().into_iter().flatten().all(|item| meets(root, &schema["items"], item));
    let length = value.as_array().map_or(0, Vec::len) as u64;
    let fields = value.as_object().into_iter().flatten().all(|(name, field)| match &schema["properties"][name] {
        Value::Null => match &schema["additionalProperties"] {
            Value::Bool(allowed) => *allowed,
            more => meets(root, more, field),
        },
        known => meets(root, known, field),
    });
    target.is_none_or(|target| meets(root, target, value))
        && (kinds.is_empty() || kinds.iter().any(is))
        && schema.get("const").is_none_or(|only| only == value)
        && schema["enum"].as_array().is_none_or(|words| words.contains(value))
        && value.as_f64().is_none_or(|number| schema["minimum"].as_f64().is_none_or(|least| number >= least))
        && (!value.is_array() || schema["minItems"].as_u64().is_none_or(|least| length >= least))
        && (!value.is_array() || schema["maxItems"].as_u64().is_none_or(|most| length <= most))
        && one_of("oneOf", true)
        && one_of("anyOf", false)
        && items
        && fields
}

#[test]
fn the_shipped_configs_meet_the_schema() {
    let schema = schema();
    let mut configs = 0;
    for entry in std::fs::read_dir(root().join("configs")).unwrap() {
        let path = entry.unwrap().path();
        // Evaluation suites and comparisons are no training configs.
        if ["-eval.toml", "-compare.toml"].iter().any(|end| path.to_string_lossy().ends_with(end)) {
            continue;
        }
        let config: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
        assert!(meets(&schema, &schema, &serde_json::to_value(config).unwrap()), "{}", path.display());
        configs += 1;
    }
    assert!(configs >= 8);
    for wrong in [
        json!({"lora": {"rnak": 4}}),
        json!({"lora": {"rank": "4"}}),
        json!({"lora": {"layers_to_transform": [0, -1]}}),
        json!({"lora": {"rank_pattern": {"q_proj": "high"}}}),
        json!({"train": {"schedule": "cosin"}}),
        json!({"train": {"adam_betas": [0.9]}}),
        json!({"lorra": {}}),
    ] {
        assert!(!meets(&schema, &schema, &wrong), "{wrong}");
    }
}

#[test]
fn init_writes_a_config_that_trains_once_it_is_filled_in() {
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("tiny.toml");
    let init = |model: &str| {
        let mut command = asft(&["init", model, "--out"]);
        command.arg(&out);
        command
    };
    let stderr = succeeds(init("tests/tiny/aligned"));
    assert!(stderr.contains("before training, set data.train and model.unaligned"), "{stderr}");
    let text = std::fs::read_to_string(&out).unwrap();
    for part in [
        "aligned = \"tests/tiny/aligned\"",
        "# unaligned =    (a string)",
        "dtype = \"f16\"",
        "max_length = 256",
        "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj in 3 layers.",
        "# Rank r of the update B·A.",
    ] {
        assert!(text.contains(part), "{part}\nis not in\n{text}");
    }
    refused(init("tests/tiny/aligned"), &["exists and is left as it is"]);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), text);
    let filled = |sets: &[&str]| {
        let mut command = asft(&["train", "--config"]);
        command.arg(&out).args(["--set", "data.train=tests/tiny/train.jsonl", "--set", "train.max_steps=1", "--set"]);
        command.arg(format!("output.dir={}", scratch.path().join("run").display()));
        for set in sets {
            command.args(["--set", set]);
        }
        command
    };
    refused(filled(&[]), &["model.unaligned"]);
    succeeds(filled(&["model.unaligned=tests/tiny/unaligned"]));
    let mut printed = asft(&["init", "tests/tiny/aligned", "--out", "-"]);
    assert_eq!(String::from_utf8(printed.output().unwrap().stdout).unwrap(), text);
    // A model without a chat template gets a format that needs none; one that is not supported gets no config.
    let bare = fixture("qwen3").join("model").display().to_string();
    let printed = asft(&["init", &bare, "--out", "-"]).output().unwrap().stdout;
    assert!(String::from_utf8(printed).unwrap().contains("format = \"prompt_completion\""));
    refused(asft(&["init", "tests/tiny", "--out", "-"]), &["config.json"]);
}

#[test]
fn lora_s_finer_settings_reach_the_adapter_and_bad_ones_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    for (sets, needles) in [
        (vec!["lora.layers_to_transform=[0, 3]"], vec!["layers_to_transform names layer 3", "layers 0 to 2"]),
        (vec!["lora.layers_to_transform=[]"], vec!["`lora.layers_to_transform` is empty"]),
        (vec!["lora.layers_to_transform=[0, \"1\"]"], vec!["a list of whole numbers of 0 or more"]),
        (vec!["lora.rank_pattern.qproj=4"], vec!["nothing matches `qproj` (did you mean `q_proj`?)"]),
        (vec!["lora.rank_pattern.q_proj=0"], vec!["`lora.rank_pattern` of `q_proj` must be at least 1"]),
        (vec!["lora.rank_pattern.q_proj=900000000000"], vec!["largest side"]),
        (vec!["lora.rank_pattern={q_proj = 2, \".*proj\" = 3}"], vec!["both", "make one narrower"]),
        (vec!["lora.loraplus_lr_ratio=-1"], vec!["lora.loraplus_lr_ratio"]),
        (vec!["train.method=full", "lora.loraplus_lr_ratio=4"], vec!["has no use with"]),
        (vec!["lora.loraplus_ratio=4"], vec!["did you mean `lora.loraplus_lr_ratio`?"]),
    ] {
        refused(train(&dir, &sets, &[]), &needles);
        assert!(!dir.exists(), "{sets:?}");
    }
    let sets = [
        "train.max_steps=6",
        "output.save_every_steps=3",
        "output.keep_last=3",
        "lora.layers_to_transform=[0, 2]",
        "lora.rank_pattern.\"layers.2.self_attn.v_proj\"=3",
        "lora.alpha_pattern.q_proj=8",
        "lora.loraplus_lr_ratio=8",
    ];
    succeeds(train(&dir, &sets, &[]));
    let config = json_file(&dir.join("adapter/adapter_config.json"));
    assert_eq!(config["layers_to_transform"], json!([0, 2]));
    assert_eq!(config["rank_pattern"], json!({"model\\.layers\\.2\\.self_attn\\.v_proj": 3}));
    assert_eq!(config["alpha_pattern"].as_object().unwrap().len(), 1, "{config}");
    // Resumed, it ends at the very same bits.
    let adapter = || std::fs::read(dir.join("adapter/adapter_model.safetensors")).unwrap();
    let whole = adapter();
    for gone in ["checkpoints/step-6", "adapter"] {
        std::fs::remove_dir_all(dir.join(gone)).unwrap();
    }
    std::fs::remove_file(dir.join("run.json")).unwrap();
    succeeds(train(&dir, &sets, &["--resume"]));
    assert!(adapter() == whole);
    // B moves faster than without.
    let plain = scratch.path().join("plain");
    succeeds(train(&plain, &[&sets[..6], &["train.max_steps=1"]].concat(), &[]));
    assert!(std::fs::read(plain.join("adapter/adapter_model.safetensors")).unwrap() != whole);
}

/// A model whose weights are a hole in a file: as large as it says, without taking any room.
fn hollow_model(dir: &Path, intermediate_size: usize) {
    std::fs::create_dir_all(dir).unwrap();
    let source = root().join("tests/tiny/aligned");
    for entry in std::fs::read_dir(&source).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
    }
    let mut config = json_file(&source.join("config.json"));
    config["intermediate_size"] = json!(intermediate_size);
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let tensors = candle_core::safetensors::load(source.join("model.safetensors"), &Device::Cpu).unwrap();
    let (mut header, mut offset) = (serde_json::Map::new(), 0);
    for (name, tensor) in tensors {
        let old = 112;
        let shape: Vec<usize> = tensor.dims().iter().map(|&d| if d == old { intermediate_size } else { d }).collect();
        let end = offset + shape.iter().product::<usize>() * 2;
        header.insert(name, json!({"dtype": "F16", "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    let path = dir.join("model.safetensors");
    std::fs::write(&path, &bytes).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len((bytes.len() + offset) as u64).unwrap();
}

#[test]
fn a_model_beyond_the_machine_s_memory_is_refused_before_it_is_loaded() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, model) = (scratch.path().join("run"), scratch.path().join("model"));
    // 3 layers of 3 matrices, 48 by 2^31: 3.7 TB in f32, 1.9 TB in f16.
    hollow_model(&model, 1 << 31);
    let set = format!("model.aligned={}", model.display());
    let command = train(&dir, &[&set, "asft.penalize=none", "output.dir=/proc/nowhere"], &[]);
    refused(command, &["of memory", "the machine has", "with its swap space", "model.dtype = \"bf16\"", "3 problems"]);
    let command = train(&dir, &[&set, "asft.penalize=none"], &[]);
    refused(command, &["error: the run needs about "]);
    assert!(!dir.exists());
}

#[test]
fn an_adapter_whose_layers_peft_would_pass_by_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("adapter");
    std::fs::create_dir(&dir).unwrap();
    let matrix = |rows, columns| Tensor::ones((rows, columns), DType::F32, &Device::Cpu).unwrap();
    let mut tensors = BTreeMap::new();
    for layer in 0..2 {
        let name = format!("base_model.model.model.layers.{layer}.self_attn.q_proj");
        tensors.insert(format!("{name}.lora_A.weight"), matrix(2, 48));
        tensors.insert(format!("{name}.lora_B.weight"), matrix(48, 2));
    }
    save_tensors(&dir.join("adapter_model.safetensors"), &tensors).unwrap();
    let config = json!({
        "peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "layers_to_transform": [1],
    });
    std::fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
    let mut command = asft(&["eval", "--model", "tests/tiny/aligned", "--data", "tests/tiny/train.jsonl", "--adapter"]);
    command.arg(&dir);
    refused(command, &["model.layers.0.self_attn.q_proj is not named there"]);
}

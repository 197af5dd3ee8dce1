//! Whole runs, and what is done with their results.

use crate::support::command::{asft, evaluation, json, refused, refused_unwritten, stdout, succeeds, train};
use crate::support::files::{damaged, fixture, read_json};
use crate::support::runs::{metrics, same_file};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

#[test]
fn the_first_command_trains_exports_and_is_used() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    succeeds(train(&dir, &["data.validation=0.1"], &[]));
    let rows = metrics(&dir);
    let losses: Vec<f64> = rows.iter().filter_map(|row| row["task_loss"].as_f64()).collect();
    assert!(losses.len() >= 20 && losses[losses.len() - 1] < 0.7 * losses[0], "{losses:?}");
    assert!(rows.iter().any(|row| row["penalty"].as_f64().is_some_and(|p| p > 0.0)));
    assert!(rows.last().unwrap()["eval_loss"].as_f64().unwrap() > 0.0);
    for file in ["config.toml", "run.json", "direction.safetensors", "adapter/adapter_config.json", "adapter/README.md"]
    {
        assert!(dir.join(file).is_file(), "{file}");
    }
    let record = read_json(&dir.join("run.json"));
    for input in ["aligned", "unaligned", "direction", "train"] {
        let input = &record["inputs"][input];
        assert!(input["source"].is_string() && input["hash"].as_str().is_some_and(|hash| hash.len() == 64), "{record}");
    }
    assert!(record["peak_memory_bytes"].as_u64().unwrap() > 0);

    // The resolved config is a config: it repeats the run bit for bit.
    let again = scratch.path().join("again");
    let mut command = asft(&["train", "--quiet", "--config"]);
    command.arg(dir.join("config.toml")).args(["--set", &format!("output.dir={}", again.display())]);
    succeeds(command);
    same_file(&dir, &again, "adapter/adapter_model.safetensors");

    let adapter = dir.join("adapter");
    let eval = |adapter: Option<&Path>| {
        let mut command =
            asft(&["eval", "--json", "--model", "tests/tiny/aligned", "--data", "tests/tiny/train.jsonl"]);
        if let Some(adapter) = adapter {
            command.arg("--adapter").arg(adapter);
        }
        evaluation(command)["loss"].as_f64().unwrap()
    };
    assert!(eval(Some(&adapter)) < 0.7 * eval(None));
    let merged = scratch.path().join("merged");
    let mut command = asft(&["merge", "--dtype", "f32", "--model", "tests/tiny/aligned", "--adapter"]);
    succeeds(command.arg(&adapter).arg("--out").arg(&merged));
    let answer = |model: &Path, adapter: Option<&Path>| {
        let mut command =
            asft(&["generate", "--max-new-tokens", "12", "--prompt", "What is the opposite of hot?", "--model"]);
        command.arg(model);
        if let Some(adapter) = adapter {
            command.arg("--adapter").arg(adapter);
        }
        stdout(command)
    };
    let adapted = answer(Path::new("tests/tiny/aligned"), Some(&adapter));
    assert!(!adapted.trim().is_empty());
    assert_eq!(adapted, answer(&merged, None));
}

#[test]
fn an_adapter_can_be_continued() {
    let scratch = tempfile::tempdir().unwrap();
    let (first, second) = (scratch.path().join("first"), scratch.path().join("second"));
    succeeds(train(&first, &["train.max_steps=5", "lora.dropout=0"], &[]));
    let init = format!("lora.init_adapter={}", first.join("adapter").display());
    succeeds(train(&second, &["train.max_steps=1", "lora.dropout=0", "train.learning_rate=1e-12", &init], &[]));
    // It starts where the first ended: the first step's penalty is not zero, as it would be for a fresh adapter.
    let penalty = |row: &Value| row["penalty"].as_f64().unwrap();
    assert!(penalty(&metrics(&second)[0]) > 0.0);
    assert_eq!(penalty(&metrics(&first)[0]), 0.0);
}

#[test]
fn full_tuning_saves_an_ordinary_checkpoint() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    succeeds(train(&dir, &["train.method=full", "train.max_steps=6", "train.learning_rate=1e-3"], &[]));
    succeeds(asft(&["eval", "--json", "--data", "tests/tiny/train.jsonl", "--model"]).arg(dir.join("model")));
    assert_eq!(read_json(&dir.join("model/config.json"))["dtype"], "float32");
    assert!(dir.join("model/tokenizer.json").is_file());
    let mode = std::fs::metadata(dir.join("model/model.safetensors")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    assert!(metrics(&dir).last().unwrap()["penalty"].as_f64().unwrap() > 0.0);
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
    succeeds(train(&dir, &[&set, "train.method=full", "train.max_steps=2", "train.learning_rate=1e-2"], &[]));
    let trained = tensors(&dir.join("model/model.safetensors"));
    let values = |name: &str| trained[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(values(head), values(embedding));
}

#[test]
fn an_earlier_run_is_not_overwritten_unasked() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("taken");
    succeeds(train(&dir, &["train.max_steps=1"], &[]));
    let before = std::fs::read(dir.join("metrics.jsonl")).unwrap();
    refused(train(&dir, &["train.max_steps=2"], &[]), &["earlier run", "--overwrite"]);
    assert_eq!(std::fs::read(dir.join("metrics.jsonl")).unwrap(), before);
    succeeds(train(&dir, &["train.max_steps=2"], &["--overwrite"]));
    assert_eq!(metrics(&dir).len(), 2);
}

#[test]
fn peft_folders_can_be_used_directly() {
    let case = fixture("llama_gqa");
    let scratch = tempfile::tempdir().unwrap();
    let mut command = asft(&["merge", "--model"]);
    command.arg(case.join("model")).arg("--adapter").arg(case.join("adapter"));
    succeeds(command.arg("--out").arg(scratch.path().join("merged")));
    let out = scratch.path().join("run");
    let mut command = asft(&["merge", "--model", "tests/tiny/aligned", "--out"]);
    command.arg(&out).arg("--adapter").arg(case.join("adapter"));
    refused_unwritten(command, &out, &["not for this model"]);
}

#[test]
fn the_version_names_what_is_built_in() {
    let version = stdout(asft(&["--version"]));
    assert!(version.starts_with(concat!("asft ", env!("CARGO_PKG_VERSION"))), "{version}");
    for (feature, built) in [("avx512", cfg!(feature = "avx512")), ("cuda", cfg!(feature = "cuda"))] {
        assert_eq!(version.contains(feature), built, "{version}");
    }
}

#[test]
fn a_run_on_a_gpu_is_planned_without_one() {
    let scratch = tempfile::tempdir().unwrap();
    let forecast = |sets: &[&str]| json(train(&scratch.path().join("run"), sets, &["--dry-run", "--json"]));
    let (cpu, gpu) = (forecast(&["model.device=cpu"]), forecast(&["model.device=cuda"]));
    assert!(gpu["time"].is_null() && gpu["available_memory_bytes"].is_null(), "{gpu}");
    let part = |forecast: &Value, part: &str| forecast["memory_bytes"][part].as_u64().unwrap();
    assert!(["weights", "trained", "direction"].iter().all(|name| part(&cpu, name) == part(&gpu, name)));
    // Attention's scores, which the CPU's kernel never holds.
    assert!(part(&gpu, "activations") > part(&cpu, "activations"));
}

#[test]
fn a_step_on_a_named_card_is_predicted_without_one() {
    let scratch = tempfile::tempdir().unwrap();
    let dry =
        |sets: &[&str], flags: &[&str]| train(&scratch.path().join("run"), sets, &[&["--dry-run"], flags].concat());
    let predicted = |card: &str, sets: &[&str]| json(dry(sets, &["--json", "--gpu", card]));
    let seconds = |forecast: &Value| forecast["prediction"]["step_seconds"].as_f64().unwrap();
    let (fast, slow) = (predicted("h100", &[]), predicted("NVIDIA GeForce RTX 4090", &["model.device=cpu"]));
    assert!(0.0 < seconds(&fast) && seconds(&fast) < seconds(&slow));
    assert_eq!(fast["step_work"], slow["step_work"]);
    let prediction = &fast["prediction"];
    let parts = prediction["parts"].as_object().unwrap();
    let sum = |key: &str| parts.values().map(|part| part[key].as_f64().unwrap()).sum::<f64>();
    let beginning = sum("launches") * prediction["assumed"]["seconds_per_launch"].as_f64().unwrap();
    assert!((seconds(&fast) / (sum("seconds") + beginning) - 1.0).abs() < 1e-9, "{prediction}");
    assert_eq!((&prediction["card"], &prediction["fits"]), (&json!("h100"), &json!(true)));
    assert_eq!(fast["available_memory_bytes"], prediction["usable_memory_bytes"]);
    let names = "linears attention rows adapters head penalty optimizer";
    assert_eq!(parts.keys().map(String::as_str).collect::<Vec<_>>().join(" "), names);
    let text = stdout(dry(&[], &["--device", "cuda", "--gpu", "a100"]));
    for words in
        ["usable on the card", "predicted for the card a100, not measured", "head and loss", "70 % of the peak"]
    {
        assert!(text.contains(words), "no `{words}` in {text}");
    }
    refused(dry(&[], &["--device", "cpu", "--gpu", "a100"]), &["--gpu a100", "the device is another"]);
}

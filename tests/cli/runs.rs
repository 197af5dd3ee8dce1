//! Whole runs and what is done with what they leave.

use super::*;
use std::os::unix::fs::PermissionsExt;

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

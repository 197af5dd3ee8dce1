//! Adapter folders and merged models: what PEFT wrote is read, what is written reads back, and a merged model computes
//! what base and adapter do.

use crate::support::command::{asft, evaluation, refused, succeeds, train};
use crate::support::files::{copy_files, fixture, header_metadata, read_json, tiny};
use crate::support::goldens::*;
use crate::support::tensors::{max_difference, to_vec};
use asft::adapter;
use asft::checkpoint::Checkpoint;
use asft::model::{Decoder, ModelSpec, Weights};
use candle_core::DType;
use indicatif::ProgressBar;
use std::path::Path;

#[test]
fn merged_logits_equal_base_and_adapter() {
    for case in CASES {
        let scratch = tempfile::tempdir().unwrap();
        let (source, out) = (fixture(case).join("model"), scratch.path().join("merged"));
        let adapter = golden_adapter(case);
        adapter::merge(&source, &base_checkpoint(case), &adapter, &out, None, &ProgressBar::hidden()).unwrap();
        let checkpoint = Checkpoint::open(&out).unwrap();
        assert!(checkpoint.names().eq(base_checkpoint(case).names()), "{case}");
        let spec = ModelSpec::load(&out).unwrap();
        let merged =
            Decoder::load(&spec, &checkpoint, (device(), DType::F32), Weights::Frozen, &ProgressBar::hidden()).unwrap();
        let batch = GoldenBatch::load(case);
        let got = to_vec(&merged.logits(&batch.input_ids, &batch.lengths).unwrap());
        let expected = to_vec(&adapted(case).logits(&batch.input_ids, &batch.lengths).unwrap());
        let worst = max_difference(&got, &expected);
        assert!(worst <= 1e-4, "{case}: {worst}");
    }
}

#[test]
fn a_merge_can_change_the_type_and_says_so_in_the_config() {
    let scratch = tempfile::tempdir().unwrap();
    let (case, out) = ("llama3_rope", scratch.path().join("merged"));
    let source = fixture(case).join("model");
    let adapter = golden_adapter(case);
    adapter::merge(&source, &base_checkpoint(case), &adapter, &out, Some(DType::BF16), &ProgressBar::hidden()).unwrap();
    let config = read_json(&out.join("config.json"));
    assert_eq!(config["dtype"], "bfloat16");
    let (merged, original) = (Checkpoint::open(&out).unwrap(), base_checkpoint(case));
    assert_eq!(merged.shards().len(), original.shards().len());
    let bytes = |c: &Checkpoint| c.names().map(|name| c.info(name).unwrap().bytes()).sum::<usize>();
    assert_eq!(bytes(&merged) * 2, bytes(&original));
}

#[test]
fn an_exported_adapter_keeps_the_peft_contract() {
    let scratch = tempfile::tempdir().unwrap();
    let (case, dir) = ("llama_gqa", scratch.path().join("adapter"));
    let mut adapter = golden_adapter(case);
    // One module with its own rank and alpha: these go into the patterns.
    let odd = "model.layers.1.self_attn.v_proj";
    let module = adapter.modules.get_mut(odd).unwrap();
    module.a = module.a.narrow(0, 0, 2).unwrap().contiguous().unwrap();
    module.b = module.b.narrow(1, 0, 2).unwrap().contiguous().unwrap();
    module.alpha = 6.0;
    adapter::save(&adapter, &spec(case), &base_checkpoint(case), "card", &dir).unwrap();

    let config = read_json(&dir.join("adapter_config.json"));
    assert!(config["r"].is_u64() && config["lora_alpha"].is_u64());
    assert_eq!((config["r"].as_u64(), config["lora_alpha"].as_u64()), (Some(4), Some(12)));
    assert_eq!(config["target_modules"], serde_json::json!(["q_proj", "v_proj", "o_proj", "down_proj"]));
    assert_eq!(config["rank_pattern"].as_object().unwrap().len(), 1);
    assert_eq!(config["modules_to_save"], serde_json::Value::Null);
    let weights = dir.join("adapter_model.safetensors");
    assert_eq!(header_metadata(&weights), [("format".to_string(), "pt".to_string())].into());
    let read = adapter::load(&dir, device()).unwrap();
    assert_eq!(read.modules[odd].rank(), 2);
    assert_eq!(read.scale(&read.modules[odd]), 3.0);

    let error = adapter::save(&adapter, &spec(case), &base_checkpoint(case), "card", &dir).unwrap_err();
    assert!(error.to_string().contains("already exists"), "{error:#}");
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1, "nothing may be left beside the result");
}

#[test]
fn an_adapter_for_another_base_is_refused() {
    let error = golden_adapter("llama_gqa").check_fits(&spec("llama3_rope")).unwrap_err();
    assert_eq!(asft::error::exit_code(&error), 2);
    assert!(error.to_string().contains("fixtures/llama_gqa"), "{error:#}");

    // Same shapes, other weights: detected by the recorded identity.
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("adapter");
    let adapter = golden_adapter("llama_gqa");
    adapter::save(&adapter, &spec("llama_gqa"), &base_checkpoint("llama_gqa"), "card", &dir).unwrap();
    let other = Checkpoint::open(&fixture("llama_gqa").join("unaligned")).unwrap();
    let check = |base: &Checkpoint| adapter::BaseIdentity::check(&dir, &adapter, base);
    check(&base_checkpoint("llama_gqa")).unwrap();
    assert!(check(&other).unwrap_err().to_string().contains("other weights"));
}

#[test]
fn a_folded_scale_changes_the_files_and_not_what_they_compute() {
    let scratch = tempfile::tempdir().unwrap();
    let sets = ["lora.use_rslora=true", "lora.rank_pattern={v_proj = 4}", "train.max_steps=2"];
    let run = |name: &str, more: &[&str]| {
        let dir = scratch.path().join(name);
        let told = succeeds(train(&dir, &[&sets[..], more].concat(), &[]));
        (dir.join("adapter"), told)
    };
    let (plain, told) = run("plain", &[]);
    assert!(told.contains("llama.cpp") && told.contains("or set export.fold_scale = true"), "{told}");
    let (folded, told) = run("folded", &["export.fold_scale=true"]);
    assert!(!told.contains("llama.cpp"), "{told}");
    let config = read_json(&folded.join("adapter_config.json"));
    assert_eq!((&config["r"], &config["lora_alpha"], &config["use_rslora"]), (&8.into(), &8.into(), &false.into()));
    assert_eq!((config["rank_pattern"].to_string(), config["alpha_pattern"].to_string()), ("{}".into(), "{}".into()));
    let loss = |adapter: &Path| {
        let data = ["eval", "--json", "--model", "tests/tiny/aligned", "--data", "tests/tiny/train.jsonl", "--adapter"];
        evaluation(asft(&data).arg(adapter))["loss"].as_f64().unwrap()
    };
    assert!((loss(&plain) - loss(&folded)).abs() < 1e-5);
    std::fs::rename(folded.join("adapter_model.safetensors"), folded.join("adapter_model.bin")).unwrap();
    let mut data = asft(&["eval", "--model", "tests/tiny/aligned", "--data", "tests/tiny/train.jsonl", "--adapter"]);
    data.arg(&folded);
    refused(data, &["has adapter_model.bin, which is pickled and never read", "save_pretrained"]);
}

#[test]
fn what_stands_beside_the_weights_is_told_and_taken_along() {
    let scratch = tempfile::tempdir().unwrap();
    let (base, dir, merged) = (scratch.path().join("base"), scratch.path().join("run"), scratch.path().join("merged"));
    copy_files(&tiny("aligned"), &base);
    let checkpoint = Checkpoint::open(&base).unwrap();
    let map: serde_json::Map<String, serde_json::Value> =
        checkpoint.names().map(|name| (name.to_string(), "model-1.safetensors".into())).collect();
    std::fs::copy(base.join("model.safetensors"), base.join("model-1.safetensors")).unwrap();
    let index = serde_json::json!({ "weight_map": map }).to_string();
    std::fs::write(base.join("model.safetensors.index.json"), index).unwrap();
    std::fs::write(base.join("LICENSE"), "as you like").unwrap();
    let aligned = format!("model.aligned={}", base.display());
    let sets = [&*aligned, "data.template_variables={mood = \"because\"}", "train.max_steps=1"];
    let told = succeeds(train(&dir, &sets, &[]));
    assert!(told.contains("model.safetensors is not read: ") && told.contains("remove one of the two"), "{told}");
    let card = std::fs::read_to_string(dir.join("adapter/README.md")).unwrap();
    assert!(card.contains("template variables") && card.contains("mood = \"because\""), "{card}");
    assert_eq!(read_json(&dir.join("run.json"))["template_variables"]["mood"], "because");
    let mut merge = asft(&["merge"]);
    merge.arg("--model").arg(&base).arg("--adapter").arg(dir.join("adapter")).arg("--out").arg(&merged);
    succeeds(merge);
    assert_eq!(std::fs::read_to_string(merged.join("LICENSE")).unwrap(), "as you like");
}

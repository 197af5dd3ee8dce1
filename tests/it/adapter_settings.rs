//! LoRA's finer settings in whole runs, and adapters whose config contradicts their matrices.

use crate::support::command::{asft, refused, refused_unwritten, succeeds, text, train};
use crate::support::files::read_json;
use crate::support::runs::interrupt;
use asft::checkpoint::save_tensors;
use candle_core::{DType, Device, Tensor};
use serde_json::json;
use std::collections::BTreeMap;

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
        refused_unwritten(train(&dir, &sets, &[]), &dir, &needles);
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
    let config = read_json(&dir.join("adapter/adapter_config.json"));
    assert_eq!(config["layers_to_transform"], json!([0, 2]));
    assert_eq!(config["rank_pattern"], json!({"model\\.layers\\.2\\.self_attn\\.v_proj": 3}));
    assert_eq!(config["alpha_pattern"].as_object().unwrap().len(), 1, "{config}");
    // Resumed, it ends at the very same bits.
    let adapter = || std::fs::read(dir.join("adapter/adapter_model.safetensors")).unwrap();
    let whole = adapter();
    interrupt(&dir, "adapter", &[6]);
    succeeds(train(&dir, &sets, &["--resume"]));
    assert!(adapter() == whole);
    // B moves faster than without.
    let plain = scratch.path().join("plain");
    succeeds(train(&plain, &[&sets[..6], &["train.max_steps=1"]].concat(), &[]));
    assert!(std::fs::read(plain.join("adapter/adapter_model.safetensors")).unwrap() != whole);
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

#[test]
fn a_regular_expression_names_what_an_adapter_is_for() {
    let scratch = tempfile::tempdir().unwrap();
    let adapter = scratch.path().join("adapter");
    std::fs::create_dir(&adapter).unwrap();
    let matrix = |rows, columns| Tensor::zeros((rows, columns), DType::F32, &Device::Cpu).unwrap();
    let mut tensors = BTreeMap::new();
    for (name, width) in [("q_proj", 48), ("k_proj", 24), ("v_proj", 24), ("o_proj", 48)] {
        let name = format!("base_model.model.model.layers.0.self_attn.{name}");
        tensors.insert(format!("{name}.lora_A.weight"), matrix(2, 48));
        tensors.insert(format!("{name}.lora_B.weight"), matrix(width, 2));
    }
    save_tensors(&adapter.join("adapter_model.safetensors"), &tensors).unwrap();
    let out = scratch.path().join("merged");
    let command = |arguments: &[&str]| {
        let mut command = asft(&[arguments[0], "--model", "tests/tiny/aligned", "--adapter", text(&adapter)]);
        command.args(&arguments[1..]);
        command
    };
    let commands: [&[&str]; 3] = [
        &["eval", "--data", "tests/tiny/train.jsonl", "--limit", "2"],
        &["generate", "--prompt", "a", "--max-new-tokens", "1"],
        &["merge", "--out", text(&out)],
    ];
    let stray = |name: &str| format!("model.layers.0.self_attn.{name} is not named there");
    let [q, k, v, o] = ["q_proj", "k_proj", "v_proj", "o_proj"].map(stray);
    for (targets, needles) in [
        (".*q_proj", vec![k.as_str(), &v, &o]),
        ("zzz", vec![&q, &k, &v, &o]),
        ("q_proj", vec![&q]),
        (r".*\.(?!q)._proj", vec![&q]),
        ("(((", vec!["`target_modules` = \"(((\" is not a valid regular expression"]),
        // The other layer has no matrices.
        (r".*\.(?=[kqvo])._proj", vec!["model.layers.1.self_attn.q_proj is named there and has no matrices"]),
        ("all-linear", vec!["model.layers.0.mlp.gate_proj is named there and has no matrices"]),
        (r".*\.0\.[^.]*\.(?=[kqvo])._proj", vec![]),
    ] {
        let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": targets});
        std::fs::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
        for arguments in commands {
            if needles.is_empty() {
                succeeds(command(arguments));
            } else {
                let message = refused(command(arguments), &needles);
                assert!(targets != ".*q_proj" || !message.contains(&q), "{message}");
            }
        }
        if needles.is_empty() {
            std::fs::remove_dir_all(&out).unwrap();
        }
    }
}

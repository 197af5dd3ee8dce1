//! Adapter settings and models that do not fit.

use super::*;
use asft::checkpoint::save_tensors;
use candle_core::{DType, Device, Tensor};

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

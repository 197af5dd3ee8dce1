//! The program from end to end on a tiny model of each kind of layer and class: a direction, a run, and what is done with its adapter.

use crate::support::command::{asft, evaluation, json, succeeds, text, train};
use crate::support::files::{copy_files, read_json, tiny};
use asft::adapter;
use asft::checkpoint::{Checkpoint, save_tensors};
use asft::model::ModelSpec;
use asft::names::{Naming, split_block};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A model with random weights and the tiny model's tokenizer; its unaligned form differs in every linear of its blocks.
fn write(dir: &Path, config: &Value, unaligned: bool) {
    copy_files(&tiny("aligned"), dir);
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let spec = ModelSpec::load(dir).unwrap();
    let random = |seed: usize, i: usize| ((i * 7_919 + seed * 104_729) % 2_003) as f32 / 1_001.0 - 1.0;
    let tensor = |(number, (name, shape)): (usize, (String, Vec<usize>))| {
        let moved = unaligned && split_block(&name).is_some() && shape.len() == 2;
        let value = |i: usize| match name.contains("norm") || name.ends_with("layer_scalar") {
            true => 1.0 + 0.1 * random(number, i),
            false => 0.2 * random(number, i) + if moved { 0.05 * random(number + 1000, i / 7) } else { 0.0 },
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
        let name = if spec.wrapped { Naming::Wrapper.name(&name).into_owned() } else { name };
        (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
    };
    let mut tensors: BTreeMap<String, Tensor> = spec.tensors().into_iter().enumerate().map(tensor).collect();
    if spec.wrapped {
        let tower = Tensor::ones((4, 4), DType::F32, &Device::Cpu).unwrap();
        tensors.insert("model.visual.blocks.0.attn.q_proj.weight".to_string(), tower);
    }
    save_tensors(&dir.join("model.safetensors"), &tensors).unwrap();
}

/// What the kinds have in common.
fn with(own: Value) -> Value {
    let mut config = json!({
        "vocab_size": 448, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "tie_word_embeddings": true,
    });
    config.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
    config
}

fn kinds() -> [(&'static str, Value); 5] {
    let inside =
        |class: &str, text: Value| json!({"model_type": class, "text_config": text, "tie_word_embeddings": true});
    let experts = json!({
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": true,
        "mlp_only_layers": [0], "model_type": "qwen3_moe",
    });
    let hybrid = json!({
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    });
    let hybrid = |own: Value| {
        let mut all = with(hybrid.clone());
        all.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        all
    };
    let of_experts = json!({
        "model_type": "qwen3_5_moe_text", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    });
    let gemma4 = json!({
        "model_type": "gemma4_text", "num_hidden_layers": 5, "global_head_dim": 16, "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 448, "sliding_window": 16, "num_kv_shared_layers": 2, "use_double_wide_mlp": true,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    });
    [
        ("wrapper", inside("qwen3_vl", with(json!({"model_type": "qwen3_vl_text"})))),
        ("mixture", with(experts)),
        ("hybrid", hybrid(json!({"model_type": "qwen3_5_text"}))),
        ("hybrid mixture in a wrapper", inside("qwen3_5_moe", hybrid(of_experts))),
        ("gemma4", with(gemma4)),
    ]
}

fn near(what: &str, got: f64, expected: f64) {
    assert!((got - expected).abs() <= 1e-4 * expected.abs(), "{what}: {got} {expected}");
}

#[test]
fn every_kind_of_model_is_trained_and_what_it_leaves_is_used() {
    for (kind, config) in kinds() {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name);
        let (aligned, unaligned) = (path("aligned"), path("unaligned"));
        write(&aligned, &config, false);
        write(&unaligned, &config, true);
        let direction = path("direction.safetensors");
        let pair = ["--aligned", text(&aligned), "--unaligned", text(&unaligned), "--target-modules", "all-linear"];
        succeeds(asft(&["direction"]).args(pair).args(["--out", text(&direction)]));
        let run = path("run");
        let sets = [
            format!("model.aligned={}", aligned.display()),
            format!("model.unaligned={}", unaligned.display()),
            "lora.target_modules=all-linear".to_string(),
            "train.max_steps=4".to_string(),
            "train.learning_rate=0.01".to_string(),
        ];
        succeeds(train(&run, &sets.each_ref().map(String::as_str), &["-q"]));
        used(kind, &aligned, &direction, &run.join("adapter"), scratch.path());
    }
}

/// Inspects, projects, merges and moves the adapter's base, and measures what comes of it.
fn used(kind: &str, model: &Path, direction: &Path, adapter: &Path, scratch: &Path) {
    let spec = ModelSpec::load(model).unwrap();
    let linears: BTreeSet<String> = spec.linear_modules().into_iter().collect();
    let loss = |model: &Path, adapter: Option<&Path>| {
        let mut command =
            asft(&["eval", "--json", "--data", "tests/tiny/train.jsonl", "--limit", "8", "--model", text(model)]);
        command.args(adapter.iter().flat_map(|adapter| ["--adapter", text(adapter)]));
        evaluation(command)["loss"].as_f64().unwrap()
    };
    let (base, tuned) = (loss(model, None), loss(model, Some(adapter)));
    assert!((base - tuned).abs() > 1e-3 * base, "{kind}: {base} {tuned}");

    let inspected = json(asft(&["inspect", "--json", "--adapter", text(adapter), "--direction", text(direction)]));
    let modules = inspected["modules"].as_array().unwrap().iter();
    let named: BTreeSet<String> = modules.map(|module| module["module"].as_str().unwrap().to_string()).collect();
    assert_eq!(named, linears, "{kind}");

    let projected = scratch.join("projected");
    let project = ["project", "--threshold", "1", "--adapter", text(adapter), "--direction", text(direction)];
    succeeds(asft(&project).args(["--out", text(&projected)]));
    let of = adapter::load_for(&projected, &spec, &Device::Cpu).unwrap();
    assert_eq!(of.modules.len(), linears.len(), "{kind}");
    let moved = loss(model, Some(&projected));
    assert!((moved - tuned).abs() > 1e-4 * tuned, "{kind}: {moved} {tuned}");

    let merged = scratch.join("merged");
    succeeds(asft(&["merge", "--model", text(model), "--adapter", text(adapter), "--out", text(&merged)]));
    near(kind, loss(&merged, None), tuned);
    let names = |dir: &Path| Checkpoint::open(dir).unwrap().names().map(str::to_string).collect::<Vec<_>>();
    assert_eq!(names(&merged), names(model), "{kind}");

    let landscape = scratch.join("landscape");
    let plan = ["--points", "3", "--grid", "0", "--repeats", "1", "--limit", "8", "--data", "tests/tiny/train.jsonl"];
    let command = ["landscape", "--model", text(model), "--direction", text(direction), "--out", text(&landscape)];
    succeeds(asft(&command).args(plan));
    let curve = &read_json(&landscape.join("landscape.json"))["landscape"]["curves"][0];
    near(kind, curve["values"][0][1].as_f64().unwrap(), base);
    assert!(curve["values"][0][0] != curve["values"][0][2], "{kind}: {curve}");
}

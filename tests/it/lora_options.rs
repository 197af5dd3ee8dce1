//! LoRA's finer settings against PEFT: ranks and alphas by pattern, chosen layers, LoRA+.
//!
//! Goldens: `tests/fixtures/make/lora.py`.

use crate::support::files::{fixture, read_json};
use crate::support::goldens::*;
use crate::support::tensors::{relative_error, to_vec};
use asft::adapter::{self, Adapter, LoraOptions, ModuleSize, fresh_modules};
use asft::config::Settings;
use asft::data::collate;
use asft::method::{AsftOptions, Penalize};
use asft::names::Naming;
use asft::train::{Penalties, TrainOptions, Trainer};

/// The golden case's settings, as overrides on the command line.
fn options() -> LoraOptions {
    let case = read_json(&fixture("lora_options").join("case.json"));
    let lora = &case["lora"];
    let mut sets: Vec<String> = ["model.aligned=a", "model.unaligned=b", "data.train=c"].map(String::from).to_vec();
    for (key, name) in [("rank", "r"), ("alpha", "lora_alpha")] {
        sets.push(format!("lora.{key}={}", lora[name]));
    }
    for key in ["target_modules", "layers_to_transform"] {
        sets.push(format!("lora.{key}={}", lora[key]));
    }
    for key in ["rank_pattern", "alpha_pattern"] {
        for (pattern, value) in lora[key].as_object().unwrap() {
            sets.push(format!("lora.{key}.\"{pattern}\"={value}"));
        }
    }
    Settings::from_toml("", "test", &sets).unwrap().lora
}
use serde_json::json;

#[test]
fn patterns_and_layers_make_the_adapter_that_peft_makes() {
    let golden = golden_adapter("lora_options");
    let options = options();
    let targets = options.targets(&spec("llama_gqa")).unwrap();
    let sizes = options.sizes(&targets).unwrap();
    assert!(golden.modules.keys().eq(sizes.keys()));
    for (name, module) in &golden.modules {
        let size = ModuleSize { rank: module.rank(), alpha: module.alpha as usize };
        assert_eq!(sizes[name], size, "{name}");
    }
    let ranks: Vec<usize> = sizes.values().map(|size| size.rank).collect();
    assert_eq!(ranks, [4, 4, 2, 6, 4, 2]);
}

#[test]
fn what_is_exported_reads_back_with_the_same_ranks_alphas_and_layers() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, spec, options) = (scratch.path().join("adapter"), spec("llama_gqa"), options());
    let base = base_checkpoint("llama_gqa");
    let sizes = options.sizes(&options.targets(&spec).unwrap()).unwrap();
    let modules = fresh_modules(&spec, &sizes, 1, device()).unwrap();
    let adapter =
        Adapter { modules, use_rslora: false, dropout: 0.0, base: None, revision: None, layout: Naming::Text };
    adapter::save(&adapter, &spec, &base, "", &dir).unwrap();
    let (written, golden) = (
        read_json(&dir.join("adapter_config.json")),
        read_json(&fixture("lora_options").join("adapter/adapter_config.json")),
    );
    // PEFT's file has the rank that the user gave, here it is the largest, for which vLLM allots memory.
    assert_eq!((&written["r"], &golden["r"]), (&json!(6), &json!(4)));
    for key in ["lora_alpha", "layers_to_transform"] {
        assert_eq!(written[key], golden[key], "{key}");
    }
    assert_eq!(written["rank_pattern"]["v_proj"], golden["rank_pattern"]["v_proj"]);
    assert_eq!(written["alpha_pattern"]["q_proj"], golden["alpha_pattern"]["q_proj"]);
    let read = adapter::load(&dir, device()).unwrap();
    for (name, module) in &golden_adapter("lora_options").modules {
        assert_eq!((read.modules[name].rank(), read.modules[name].alpha), (module.rank(), module.alpha), "{name}");
    }
}

#[test]
fn three_loraplus_steps_equal_peft() {
    let golden = Golden::expected("lora_options");
    let steps = read_json(&fixture("lora_options").join("case.json"))["steps"].clone();
    let number = |key: &str| steps[key].as_f64().unwrap();
    let adapter = golden_adapter("lora_options");
    let mut model = base("llama_gqa", false);
    attach(&mut model, &adapter);
    let asft = AsftOptions { penalize: Penalize::None, ..Default::default() };
    let penalties = Penalties::new(&asft, &[], None, Some(&adapter), &model).unwrap();
    let options = TrainOptions { weight_decay: number("weight_decay"), ..Default::default() };
    let mut trainer = Trainer::new(model, penalties, &options, false);
    trainer.optimizer.set_lora_b_ratio(number("loraplus_lr_ratio"));
    let batch = [collate(&GoldenBatch::load("llama_gqa").examples())];
    for (step, expected) in golden.values("loss").into_iter().enumerate() {
        let loss = trainer.step(step, &batch, number("lr")).unwrap().task_loss;
        assert!((loss / expected - 1.0).abs() <= 1e-5, "step {step}: {loss} {expected}");
    }
    let end = adapter.with_values(trainer.model.parameters()).unwrap();
    let mut compared = 0;
    for (name, module) in &end.modules {
        for (matrix, tensor) in [("lora_A", &module.a), ("lora_B", &module.b)] {
            let error = relative_error(&to_vec(tensor), &golden.values(&format!("final.{name}.{matrix}")));
            assert!(error <= 1e-4, "{name} {matrix}: {error}");
            compared += 1;
        }
    }
    assert_eq!(compared, golden.with_prefix("final.").count());
}

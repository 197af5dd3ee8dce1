//! That the goldens of Gemma 4 notice each of its features, and what it has besides them.

use crate::support::command::{asft, succeeds};
use crate::support::files::{fixture, read_json};
use crate::support::goldens::*;
use crate::support::tensors::to_vec;
use asft::adapter::{self, LoraOptions};
use asft::checkpoint::{Checkpoint, save_tensors};
use asft::model::{Decoder, ModelSpec, RopeScaling, Weights};
use asft::names::{Naming, Targets};
use candle_core::{DType, Device, Tensor};
use indicatif::ProgressBar;
use serde_json::json;
use std::collections::BTreeMap;

const CASE: &str = "gemma4_text";
const SHARED: &str = "gemma4_shared";
const WIDE: &str = "gemma4_wide";

#[test]
fn every_feature_switched_off_shows_in_its_golden() {
    type Off = fn(&mut ModelSpec);
    let unscaled: Off = |spec| spec.attention_scale = (spec.head_dim as f64).powf(-0.5);
    let features: [(&str, Off); 8] = [
        ("norms of values", |spec| spec.value_norm = false),
        ("scores as they are", unscaled),
        ("norms of w", |spec| spec.norm_offset = true),
        ("soft-cap", |spec| spec.logit_softcap = None),
        ("embeddings' factor", |spec| spec.embedding_scale = None),
        ("window", |spec| spec.layers[0].window = None),
        ("a rotation of windows", |spec| spec.layers[0].rope = None),
        ("a share of pairs", |spec| spec.ropes[0].scaling = RopeScaling::None),
    ];
    let same = logit_error(CASE, &spec(CASE), |_, tensor| tensor);
    assert!(same <= 1e-4, "{same}");
    for (feature, off) in features {
        let mut changed = spec(CASE);
        off(&mut changed);
        let found = logit_error(CASE, &changed, |_, tensor| tensor);
        assert!(found > 1e-2, "without {feature}: {found}");
    }
    // The pairs that are turned have frequencies of their own.
    let mut beginning = spec(CASE);
    (beginning.ropes[0].scaling, beginning.ropes[0].partial) = (RopeScaling::None, 0.5);
    assert!(logit_error(CASE, &beginning, |_, tensor| tensor) > 1e-2);
}

#[test]
fn every_tensor_of_its_own_shows_in_its_golden() {
    type Change = fn(&Tensor) -> Tensor;
    let ones: Change = |x| x.ones_like().unwrap();
    for ending in ["layer_scalar", "q_norm.weight", "k_norm.weight", "post_feedforward_layernorm.weight"] {
        let change = |name: &str, tensor: Tensor| if name.ends_with(ending) { ones(&tensor) } else { tensor };
        let found = logit_error(CASE, &spec(CASE), change);
        assert!(found > 1e-2, "without {ending}: {found}");
    }
}

#[test]
fn what_layers_hand_on_shows_in_its_golden() {
    type Off = fn(&mut ModelSpec);
    let same = logit_error(SHARED, &spec(SHARED), |_, tensor| tensor);
    assert!(same <= 1e-4, "{same}");
    let features: [(&str, Off); 3] = [
        ("a window over shared keys", |spec| spec.layers[3].window = None),
        ("rotation of shared keys", |spec| spec.layers[0].rope = None),
        ("embeddings' factor", |spec| spec.embedding_scale = None),
    ];
    for (feature, off) in features {
        let mut changed = spec(SHARED);
        off(&mut changed);
        let found = logit_error(SHARED, &changed, |_, tensor| tensor);
        assert!(found > 1e-2, "without {feature}: {found}");
    }
    for ending in [
        "embed_tokens_per_layer.weight",
        "per_layer_model_projection.weight",
        "per_layer_input_gate.weight",
        "layers.0.self_attn.k_proj.weight",
        "layers.1.self_attn.v_proj.weight",
    ] {
        let none = |name: &str, x: Tensor| if name.ends_with(ending) { x.zeros_like().unwrap() } else { x };
        let found = logit_error(SHARED, &spec(SHARED), none);
        assert!(found > 1e-2, "without {ending}: {found}");
    }
    for ending in ["per_layer_projection_norm.weight", "post_per_layer_input_norm.weight"] {
        let ones = |name: &str, x: Tensor| if name.ends_with(ending) { x.ones_like().unwrap() } else { x };
        let found = logit_error(SHARED, &spec(SHARED), ones);
        assert!(found > 1e-2, "without {ending}: {found}");
    }
}

/// Which of two layers of a type is seen, and heads wider than the GPU's kernel takes.
#[test]
fn the_last_of_two_layers_with_a_window_is_seen() {
    let same = logit_error(WIDE, &spec(WIDE), |_, tensor| tensor);
    assert!(same <= 1e-4, "{same}");
    assert_eq!((spec(WIDE).layers[3].keys_of, spec(WIDE).heads(2).head_dim), (Some(1), 264));
    let mut changed = spec(WIDE);
    changed.layers[3].keys_of = Some(0);
    let found = logit_error(WIDE, &changed, |_, tensor| tensor);
    assert!(found > 1e-2, "{found}");
}

/// Every golden adapter, which PEFT wrote, has what its config names in its model.
#[test]
fn adapters_as_peft_writes_them_are_whole() {
    for case in CASES {
        let adapter = adapter::load_for(&fixture(case).join("adapter"), &spec(case), device()).unwrap();
        assert_eq!(adapter.modules.len(), golden_adapter(case).modules.len(), "{case}");
    }
}

/// Checkpoints may hold the keys that a layer would have, and transformers does not read them either.
#[test]
fn keys_that_are_replaced_may_be_stored() {
    let (stored, scratch) = (base_checkpoint(SHARED), tempfile::tempdir().unwrap());
    let read = |name: &str| (name.to_string(), stored.tensor(name, DType::F32, &Device::Cpu).unwrap());
    let load = |extra: &str| {
        let mut tensors: BTreeMap<String, Tensor> = stored.names().map(read).collect();
        tensors.insert(extra.to_string(), Tensor::zeros((24, 48), DType::F32, &Device::Cpu).unwrap());
        save_tensors(&scratch.path().join("model.safetensors"), &tensors).unwrap();
        let weights = Checkpoint::open(scratch.path()).unwrap();
        let place = (device(), DType::F32);
        Decoder::load(&spec(SHARED), &weights, place, Weights::Frozen, &ProgressBar::hidden()).map(drop)
    };
    load("model.layers.2.self_attn.k_proj.weight").unwrap();
    let error = load("model.layers.2.self_attn.x_proj.weight").unwrap_err().to_string();
    assert!(error.contains("x_proj.weight is not part"), "{error}");
}

/// A pair of which one side holds such keys has a direction without them.
#[test]
fn a_direction_leaves_replaced_keys_out() {
    let (stored, scratch) = (base_checkpoint(SHARED), tempfile::tempdir().unwrap());
    let side = |name: &str, factor: f64, extra: bool| {
        let dir = scratch.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::copy(fixture(SHARED).join("model/config.json"), dir.join("config.json")).unwrap();
        let read =
            |name: &str| (name.to_string(), (stored.tensor(name, DType::F32, &Device::Cpu).unwrap() * factor).unwrap());
        let mut tensors: BTreeMap<String, Tensor> = stored.names().map(read).collect();
        if extra {
            let keys = Tensor::ones((24, 48), DType::F32, &Device::Cpu).unwrap();
            tensors.insert("model.layers.2.self_attn.k_proj.weight".to_string(), keys);
        }
        save_tensors(&dir.join("model.safetensors"), &tensors).unwrap();
        dir.display().to_string()
    };
    let out = scratch.path().join("direction.safetensors").display().to_string();
    let (aligned, unaligned) = (side("aligned", 1.0, true), side("unaligned", 0.9, false));
    let pair = ["--aligned", &aligned, "--unaligned", &unaligned, "--target-modules", "k_proj", "--out", &out];
    succeeds(asft(&["direction"]).args(pair));
    let made = candle_core::safetensors::load(&out, &Device::Cpu).unwrap();
    assert!(made.keys().any(|name| name.contains("layers.0.self_attn.k_proj")));
    assert!(!made.keys().any(|name| name.contains("layers.2.self_attn.k_proj")));
}

/// Also what is outside of the blocks has its place in the multimodal class.
#[test]
fn a_model_with_inputs_of_layers_is_the_same_inside_its_class() {
    let (stored, scratch) = (base_checkpoint(SHARED), tempfile::tempdir().unwrap());
    let read = |name: &str| {
        let tensor = stored.tensor(name, DType::F32, &Device::Cpu).unwrap();
        (Naming::Wrapper.name(name).into_owned(), tensor)
    };
    save_tensors(&scratch.path().join("model.safetensors"), &stored.names().map(read).collect()).unwrap();
    let text = read_json(&fixture(SHARED).join("model/config.json"));
    let config = json!({"model_type": "gemma4", "text_config": text, "tie_word_embeddings": true});
    std::fs::write(scratch.path().join("config.json"), config.to_string()).unwrap();
    let (spec, weights) = (ModelSpec::load(scratch.path()).unwrap(), Checkpoint::open(scratch.path()).unwrap());
    assert!(spec.wrapped && weights.names().any(|name| name == "model.embed_tokens_per_layer.weight"));
    let place = (device(), DType::F32);
    let inside = Decoder::load(&spec, &weights, place, Weights::Frozen, &ProgressBar::hidden()).unwrap();
    let batch = GoldenBatch::load(SHARED);
    let logits = |model: &Decoder| to_vec(&model.logits(&batch.input_ids, &batch.lengths).unwrap());
    assert_eq!(logits(&inside), logits(&base(SHARED, false)));
}

#[test]
fn layers_whose_values_are_keys_have_no_linear_of_values() {
    let targets = |names: &[&str]| {
        let target_modules = Targets::List(names.iter().map(|name| name.to_string()).collect());
        LoraOptions { target_modules, ..Default::default() }.targets(&spec(CASE)).unwrap()
    };
    assert_eq!(targets(&["v_proj"]), ["model.layers.0.self_attn.v_proj"]);
    assert_eq!(targets(&["k_proj"]).len(), 3);
}

#[test]
fn a_target_that_no_chosen_layer_has_is_refused() {
    let targets = |names: &[&str], layers: &[usize]| {
        let target_modules = Targets::List(names.iter().map(|name| name.to_string()).collect());
        let layers_to_transform = Some(layers.to_vec());
        LoraOptions { target_modules, layers_to_transform, ..Default::default() }.targets(&spec(SHARED))
    };
    assert_eq!(targets(&["q_proj", "k_proj"], &[1, 2]).unwrap().len(), 3);
    for names in [["q_proj", "k_proj"], ["o_proj", "self_attn.v_proj"]] {
        let error = targets(&names, &[2, 4]).unwrap_err();
        assert_eq!(asft::error::exit_code(&error), 2);
        let expected = format!(
            "nothing matches `{}` in the layers of layers_to_transform (2, 4); leave it out, or add a layer that has it, such as 0, 1",
            names[1]
        );
        assert!(error.to_string().contains(&expected), "{error:#}");
    }
}

/// PEFT writes matrices of keys and values for the layers that have linears of them; older transformers had them in all layers, and
/// read those of the first.
#[test]
fn an_adapter_holds_what_the_layers_have_and_all_of_it() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let written = |config: serde_json::Value, keep: &dyn Fn(&str) -> bool, more: &[&str]| {
        let mut tensors = BTreeMap::new();
        let linears = spec(SHARED).linear_modules();
        for module in linears.iter().map(String::as_str).filter(|module| keep(module)).chain(more.iter().copied()) {
            let (d_out, d_in) = adapter::module_shape(&spec(SHARED), module).unwrap_or((24, 48));
            for (matrix, shape) in [("lora_A", (2, d_in)), ("lora_B", (d_out, 2))] {
                let tensor = Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
                tensors.insert(format!("base_model.model.{module}.{matrix}.weight"), tensor);
            }
        }
        save_tensors(&dir.join("adapter_model.safetensors"), &tensors).unwrap();
        let mut all = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4});
        all.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        std::fs::write(dir.join("adapter_config.json"), all.to_string()).unwrap();
        adapter::load_for(dir, &spec(SHARED), &Device::Cpu).map(|adapter| adapter.modules.len())
    };
    let attention = |module: &str| ["q_proj", "k_proj", "v_proj"].iter().any(|name| module.ends_with(name));
    let targets = |names: &[&str]| json!({"target_modules": names});
    assert_eq!(written(targets(&["q_proj", "k_proj", "v_proj"]), &attention, &[]).unwrap(), 5 + 2 + 2);
    let late = |module: &str| attention(module) && (module.contains(".3.") || module.contains(".4."));
    let layers = json!({"target_modules": ["q_proj", "k_proj", "v_proj"], "layers_to_transform": [3, 4]});
    assert_eq!(written(layers, &late, &[]).unwrap(), 2);
    let pattern = json!({"target_modules": r"model\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj)"});
    assert_eq!(written(pattern, &attention, &[]).unwrap(), 9);
    let older: Vec<String> = (2..5).map(|layer| format!("model.layers.{layer}.self_attn.k_proj")).collect();
    let older: Vec<&str> = older.iter().map(String::as_str).collect();
    assert_eq!(written(targets(&["q_proj", "k_proj", "v_proj"]), &attention, &older).unwrap(), 9);

    let gate = "per_layer_input_gate";
    let outer = |module: &'static str| json!({"target_modules": format!(r"model\.layers\..*\.q_proj|{module}")});
    let queries = |module: &str| module.ends_with("q_proj");
    let none: &[&str] = &[];
    let refusals = [
        (targets(&["q_proj", gate]), none, "model.layers.0.per_layer_input_gate is named there and has no matrices"),
        (targets(&["q_proj", "k_proj"]), none, "model.layers.1.self_attn.k_proj is named there and has no matrices"),
        (outer(r".*\.per_layer_projection"), none, "model.layers.4.per_layer_projection is named"),
        (outer("lm_head"), none, "lm_head is named there and has no matrices"),
        (outer("model.per_layer_model_projection"), none, "per_layer_model_projection is named there"),
        (
            targets(&["q_proj", "per_layer_model_projection"]),
            &["model.per_layer_model_projection"],
            "matrices for model.per_layer_model_projection; asft serves adapters of the blocks' linears only",
        ),
        (
            json!({"target_modules": ["q_proj"], "layers_to_transform": [0, 1, 2, 3, 4, 5]}),
            none,
            "names layer 5; the model has layers 0 to 4",
        ),
    ];
    for (config, more, needle) in refusals {
        let error = written(config, &queries, more).unwrap_err();
        assert!(error.to_string().contains(needle), "{needle}: {error:#}");
        assert_eq!(asft::error::exit_code(&error), 2);
    }
}

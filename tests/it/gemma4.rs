//! That the goldens of Gemma 4 notice each of its features, and what it has besides them.

use crate::support::command::{asft, succeeds};
use crate::support::files::{fixture, read_json};
use crate::support::goldens::*;
use crate::support::tensors::to_vec;
use asft::adapter::LoraOptions;
use asft::checkpoint::{Checkpoint, save_tensors};
use asft::model::{Decoder, ModelSpec, RopeScaling, Weights};
use asft::names::{Naming, Targets};
use candle_core::{DType, Device, Tensor};
use indicatif::ProgressBar;
use serde_json::json;
use std::collections::BTreeMap;

const CASE: &str = "gemma4_text";
const SHARED: &str = "gemma4_shared";

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

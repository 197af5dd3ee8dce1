//! That the goldens of Qwen3.5 notice each of its features, and what a gated DeltaNet does besides them.

use crate::support::goldens::*;
use asft::adapter::LoraOptions;
use asft::checkpoint::{Checkpoint, save_tensors};
use asft::model::{Decoder, ModelSpec, Weights};
use asft::names::Targets;
use candle_core::{DType, Device, Tensor};
use indicatif::ProgressBar;
use std::collections::BTreeMap;

const CASE: &str = "qwen3_5_text";
const MIXTURE: &str = "qwen3_5_moe";

#[test]
fn every_feature_switched_off_shows_in_its_golden() {
    type Off = fn(&mut ModelSpec);
    let features: [(&str, Off); 3] = [
        ("norms of 1 + w", |spec| spec.norm_offset = false),
        ("partial rotation", |spec| spec.ropes[0].partial = 0.25),
        ("a rotation", |spec| spec.layers[1].rope = None),
    ];
    for (feature, off) in features {
        let mut changed = spec(CASE);
        off(&mut changed);
        let found = logit_error(CASE, &changed, |_, tensor| tensor);
        assert!(found > 1e-2, "without {feature}: {found}");
    }
}

/// Each tensor of a gated DeltaNet, and the gates of attention, replaced by what does nothing.
#[test]
fn every_tensor_of_a_gated_delta_net_shows_in_its_golden() {
    type Change = fn(&Tensor) -> Tensor;
    let nothing: Change = |x| x.zeros_like().unwrap();
    let last_position: Change = |x| {
        let earlier = x.narrow(2, 0, x.dim(2).unwrap() - 1).unwrap().zeros_like().unwrap();
        Tensor::cat(&[earlier, x.narrow(2, 0, 1).unwrap().ones_like().unwrap()], 2).unwrap()
    };
    // Of 4 heads with 16 queries and then 16 gates each.
    let even_gates: Change = |x| {
        let heads = x.reshape((4, 32, ())).unwrap();
        let queries = heads.narrow(1, 0, 16).unwrap();
        Tensor::cat(&[&queries, &queries.zeros_like().unwrap()], 1).unwrap().reshape(x.shape()).unwrap()
    };
    let changes: [(&str, Change); 9] = [
        // Nothing is forgotten.
        ("linear_attn.A_log", |x| (x.zeros_like().unwrap() - 30.0).unwrap()),
        ("linear_attn.dt_bias", nothing),
        ("linear_attn.conv1d.weight", last_position),
        ("linear_attn.norm.weight", |x| x.ones_like().unwrap()),
        ("linear_attn.in_proj_b.weight", nothing),
        ("linear_attn.in_proj_a.weight", nothing),
        ("linear_attn.in_proj_z.weight", nothing),
        ("self_attn.q_norm.weight", nothing),
        ("self_attn.q_proj.weight", even_gates),
    ];
    let same = logit_error(CASE, &spec(CASE), |_, tensor| tensor);
    assert!(same <= 1e-4, "{same}");
    for (ending, change) in changes {
        let found = logit_error(
            CASE,
            &spec(CASE),
            |name, tensor| if name.ends_with(ending) { change(&tensor) } else { tensor },
        );
        assert!(found > 1e-2, "{ending}: {found}");
    }
}

#[test]
fn a_shared_expert_and_its_gate_show_in_the_golden_of_a_mixture() {
    // The weights are saved by the names of the text model.
    let spec = ModelSpec { wrapped: false, ..spec(MIXTURE) };
    let without = |ending: &str| {
        logit_error(MIXTURE, &spec, |name, x| if name.ends_with(ending) { x.zeros_like().unwrap() } else { x })
    };
    assert!(without("nothing") <= 1e-4);
    for ending in ["shared_expert_gate.weight", "shared_expert.down_proj.weight", "mlp.gate.weight"] {
        assert!(without(ending) > 1e-2, "{ending}: {}", without(ending));
    }
    let mut one = spec.clone();
    one.experts.as_mut().unwrap().per_token = 1;
    assert!(logit_error(MIXTURE, &one, |_, x| x) > 1e-2);
    let targets = |name: &str| {
        let target_modules = Targets::List(vec![name.to_string()]);
        LoraOptions { target_modules, ..Default::default() }.targets(&spec)
    };
    assert_eq!(targets("shared_expert_gate").unwrap().len(), 3);
    assert_eq!(targets("up_proj").unwrap(), targets("shared_expert.up_proj").unwrap());
    assert!(targets("experts.0.up_proj").unwrap_err().to_string().contains("take no adapters"));
}

#[test]
fn the_linears_of_a_gated_delta_net_are_targets_and_its_other_tensors_are_not() {
    let targets = |names: &[&str]| {
        let target_modules = Targets::List(names.iter().map(|name| name.to_string()).collect());
        LoraOptions { target_modules, ..Default::default() }.targets(&spec(CASE))
    };
    assert_eq!(targets(&["in_proj_qkv", "out_proj"]).unwrap().len(), 4);
    assert_eq!(targets(&["linear_attn.in_proj_a", "q_proj"]).unwrap().len(), 3);
    let all = LoraOptions { target_modules: Targets::AllLinear, ..Default::default() }.targets(&spec(CASE)).unwrap();
    assert_eq!(all.len(), 2 * (5 + 3) + 4 + 3);
    for name in ["conv1d", "linear_attn.norm", "A_log", "qkv_proj"] {
        let error = targets(&["q_proj", name]).unwrap_err();
        assert!(error.to_string().contains(&format!("nothing matches `{name}`")), "{error:#}");
        assert_eq!(asft::error::exit_code(&error), 2);
    }
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let (stored, scratch) = (base_checkpoint(CASE), tempfile::tempdir().unwrap());
    let mut tensors = BTreeMap::new();
    for name in stored.names().filter(|name| !name.ends_with("layers.0.linear_attn.A_log")) {
        let mut tensor = stored.tensor(name, DType::F32, &Device::Cpu).unwrap();
        if name.ends_with("layers.2.linear_attn.conv1d.weight") {
            tensor = tensor.squeeze(1).unwrap();
        }
        tensors.insert(name.to_string(), tensor);
    }
    save_tensors(&scratch.path().join("model.safetensors"), &tensors).unwrap();
    let weights = Checkpoint::open(scratch.path()).unwrap();
    let place = (device(), DType::F32);
    let result = Decoder::load(&spec(CASE), &weights, place, Weights::Frozen, &ProgressBar::hidden());
    let error = result.err().unwrap();
    assert_eq!(asft::error::exit_code(&error), 2);
    let text = format!("{error:#}");
    assert!(text.contains("model.layers.0.linear_attn.A_log is missing"), "{text}");
    assert!(text.contains("model.layers.2.linear_attn.conv1d.weight has shape [80, 4], expected [80, 1, 4]"), "{text}");
}

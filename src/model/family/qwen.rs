//! Qwen2 and Qwen3, Qwen3's mixtures of experts, and the text model of Qwen3-VL.

use super::base::{Defaults, LLAMA, common, read_attention_bias};
use super::refused::refuse_unsupported;
use super::ropes::{PLAIN, RopeDefaults};
use super::windows::{if_used, set_windows, sliding_window};
use crate::ensure_valid;
use crate::model::config_json::Config;
use crate::model::spec::{Experts, ModelSpec, QkNorm};
use anyhow::Result;

pub fn qwen(config: &Config, third: bool) -> Result<ModelSpec> {
    let defaults = Defaults {
        num_key_value_heads: Some(32),
        head_dim: third.then_some(128),
        max_position_embeddings: 32_768,
        ..LLAMA
    };
    let own = ["sliding_window", "use_sliding_window", "max_window_layers", "layer_types"];
    refuse_unsupported(config, &[&own[..], if third { &["attention_bias"] } else { &[] }].concat())?;
    let mut spec = common(config, &defaults)?;
    if third {
        read_attention_bias(config, &mut spec)?;
        spec.qk_norm = Some(QkNorm::Heads);
    } else {
        spec.qkv_bias = true;
    }
    // The window counts only if it is switched on, and then for the layers from max_window_layers on.
    let window = if_used(config, sliding_window(config)?)?;
    let first = match config.get("max_window_layers") {
        Some(value) => value.as_u64().ok_or_else(|| config.wrong("max_window_layers", "a whole number", value))?,
        None => 28,
    };
    set_windows(config, &mut spec, window, |layer| window.is_some() && layer as u64 >= first)?;
    Ok(spec)
}

/// Layers have experts in place of an MLP, unless `mlp_only_layers` names them or `decoder_sparse_step` passes them over.
pub fn qwen3_moe(config: &Config) -> Result<ModelSpec> {
    let defaults = Defaults { num_key_value_heads: Some(4), max_position_embeddings: 32_768, ..LLAMA };
    let own = ["attention_bias", "sliding_window", "use_sliding_window", "num_experts", "num_local_experts"];
    refuse_unsupported(config, &own)?;
    let mut spec = common(config, &defaults)?;
    read_attention_bias(config, &mut spec)?;
    spec.qk_norm = Some(QkNorm::Heads);
    let window = if_used(config, sliding_window(config)?)?;
    let written = match config.size("num_experts")? {
        Some(count) => Some(count),
        None => config.size("num_local_experts")?,
    };
    let experts = Experts {
        count: written.unwrap_or(128),
        per_token: config.size("num_experts_per_tok")?.unwrap_or(8),
        intermediate_size: config.size("moe_intermediate_size")?.unwrap_or(768),
        normalised: config.flag("norm_topk_prob")?.unwrap_or(false),
        shared: None,
    };
    check_experts(config, &experts)?;
    let dense = config.numbers("mlp_only_layers")?.unwrap_or_default();
    let step = config.size("decoder_sparse_step")?.unwrap_or(1);
    for (number, layer) in spec.layers.iter_mut().enumerate() {
        layer.window = window;
        layer.mixture = (number + 1).is_multiple_of(step) && !dense.contains(&(number as f64));
    }
    spec.experts = Some(experts);
    Ok(spec)
}

/// Checks the number of a mixture's experts.
pub fn check_experts(config: &Config, experts: &Experts) -> Result<()> {
    ensure_valid!(
        experts.per_token <= experts.count && experts.count <= MAX_EXPERTS,
        "{}: num_experts_per_tok is {} of {} experts; expected at most as many, and at most {MAX_EXPERTS} experts",
        config.origin,
        experts.per_token,
        experts.count
    );
    Ok(())
}

/// More experts than any model has: tensors are listed before any weight is looked at.
const MAX_EXPERTS: usize = 4096;

/// A Qwen3 without windows. The three positions of a token are equal in text, so its sections of frequencies are one rotation.
pub fn qwen3_vl(config: &Config) -> Result<ModelSpec> {
    let defaults = Defaults {
        num_key_value_heads: Some(32),
        head_dim: Some(128),
        max_position_embeddings: 128_000,
        rope: RopeDefaults { theta: 500_000.0, ..PLAIN },
        ..LLAMA
    };
    refuse_unsupported(config, &["attention_bias"])?;
    let mut spec = common(config, &defaults)?;
    read_attention_bias(config, &mut spec)?;
    spec.qk_norm = Some(QkNorm::Heads);
    Ok(spec)
}

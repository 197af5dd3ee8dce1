//! Qwen3.5: a gated DeltaNet in three layers of four, gated attention with partial rotation in the others; an MLP in all layers, or a
//! mixture of experts.

use super::base::{Defaults, LLAMA, common, read_attention_bias};
use super::layer_types::layers_of_type;
use super::qwen::check_experts;
use super::refused::refuse_unsupported;
use super::ropes::{PLAIN, RopeDefaults};
use crate::ensure_valid;
use crate::model::config_json::Config;
use crate::model::spec::{DeltaNetSpec, Experts, ModelSpec, QkNorm};
use crate::ops::activation::Activation;
use crate::ops::delta_rule;
use anyhow::Result;

const QWEN_3_5: Defaults = Defaults {
    num_key_value_heads: Some(4),
    head_dim: Some(256),
    max_position_embeddings: 32_768,
    rope: RopeDefaults { partial: Some(0.25), ..PLAIN },
    ..LLAMA
};
/// Fields that both read.
const OWN: [&str; 4] = ["attention_bias", "layer_types", "partial_rotary_factor", "attn_output_gate"];

pub fn qwen3_5(config: &Config) -> Result<ModelSpec> {
    refuse_unsupported(config, &OWN)?;
    hybrid(config, &QWEN_3_5)
}

/// Every layer has experts, of which one is shared; the weights of the chosen ones always add up to 1.
pub fn qwen3_5_moe(config: &Config) -> Result<ModelSpec> {
    refuse_unsupported(config, &[&OWN[..], &["num_experts"]].concat())?;
    ensure_valid!(
        config.flag("norm_topk_prob")?.unwrap_or(true),
        "{}: `norm_topk_prob` = false is not supported for this model_type; expected true",
        config.origin
    );
    let dense = config.numbers("mlp_only_layers")?.unwrap_or_default();
    ensure_valid!(
        dense.is_empty(),
        "{}: `mlp_only_layers` = {dense:?} is not supported for this model_type; expected none",
        config.origin
    );
    let size = |key: &str, default: usize| Ok::<_, anyhow::Error>(config.size(key)?.unwrap_or(default));
    let experts = Experts {
        count: size("num_experts", 256)?,
        per_token: size("num_experts_per_tok", 8)?,
        intermediate_size: size("moe_intermediate_size", 512)?,
        normalised: true,
        shared: Some(size("shared_expert_intermediate_size", 512)?),
    };
    check_experts(config, &experts)?;
    let defaults = Defaults {
        num_key_value_heads: Some(2),
        // No layer has it.
        intermediate_size: Some(experts.intermediate_size),
        ..QWEN_3_5
    };
    let mut spec = hybrid(config, &defaults)?;
    spec.layers.iter_mut().for_each(|layer| layer.mixture = true);
    spec.experts = Some(experts);
    Ok(spec)
}

fn hybrid(config: &Config, defaults: &Defaults) -> Result<ModelSpec> {
    let mut spec = common(config, defaults)?;
    ensure_valid!(
        spec.activation == Activation::Silu,
        "{}: hidden_act is {:?}; expected silu, which the convolution of this model_type has too",
        config.origin,
        spec.activation
    );
    ensure_valid!(
        config.flag("attn_output_gate")?.unwrap_or(true),
        "{}: `attn_output_gate` = false is not supported for this model_type; expected true",
        config.origin
    );
    read_attention_bias(config, &mut spec)?;
    spec.qk_norm = Some(QkNorm::Heads);
    (spec.norm_offset, spec.gated_attention) = (true, true);
    let recurrent = recurrent_layers(config, spec.num_hidden_layers)?;
    for (layer, recurrent) in spec.layers.iter_mut().zip(recurrent) {
        layer.delta_net = recurrent;
        layer.rope = (!recurrent).then_some(0);
    }
    spec.delta_net = Some(delta_net(config)?);
    Ok(spec)
}

fn delta_net(config: &Config) -> Result<DeltaNetSpec> {
    let size = |key: &str, default: usize| Ok::<_, anyhow::Error>(config.size(key)?.unwrap_or(default));
    let heads = delta_rule::Shape {
        key_heads: size("linear_num_key_heads", 16)?,
        value_heads: size("linear_num_value_heads", 32)?,
        key_dim: size("linear_key_head_dim", 128)?,
        value_dim: size("linear_value_head_dim", 128)?,
    };
    let window = size("linear_conv_kernel_dim", 4)?;
    ensure_valid!(
        heads.value_heads.is_multiple_of(heads.key_heads),
        "{}: linear_num_value_heads ({}) is not a multiple of linear_num_key_heads ({})",
        config.origin,
        heads.value_heads,
        heads.key_heads
    );
    ensure_valid!(
        (2..=MAX_WINDOW).contains(&window),
        "{}: linear_conv_kernel_dim is {window}; expected 2 to {MAX_WINDOW}",
        config.origin
    );
    Ok(DeltaNetSpec { heads, window })
}

/// More positions than any convolution of a model sees.
const MAX_WINDOW: usize = 64;

/// Which layers have a gated DeltaNet: as `layer_types` says, else all but every fourth (`full_attention_interval`).
fn recurrent_layers(config: &Config, layers: usize) -> Result<Vec<bool>> {
    let interval = config.size("full_attention_interval")?.unwrap_or(4);
    layers_of_type(config, layers, "linear_attention", |layer| !(layer + 1).is_multiple_of(interval))
}

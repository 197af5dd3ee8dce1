//! GLM-4: norms around attention and MLP, gate and up as one linear, half of each head rotated in pairs of neighbours.

use super::base::{Defaults, LLAMA, common};
use super::refused::refuse_unsupported;
use super::ropes::{PLAIN, RopeDefaults};
use crate::model::config_json::Config;
use crate::model::spec::{BlockNorms, ModelSpec};
use anyhow::Result;

pub fn glm4(config: &Config) -> Result<ModelSpec> {
    let defaults = Defaults {
        num_key_value_heads: Some(2),
        head_dim: Some(128),
        max_position_embeddings: 131_072,
        rms_norm_eps: 1.5625e-7,
        rope: RopeDefaults { partial: Some(0.5), interleaved: true, ..PLAIN },
        ..LLAMA
    };
    refuse_unsupported(config, &["attention_bias", "partial_rotary_factor"])?;
    let mut spec = common(config, &defaults)?;
    // Only on q, k and v.
    spec.qkv_bias = config.flag("attention_bias")?.unwrap_or(true);
    (spec.fused_gate_up, spec.norms) = (true, BlockNorms::GLM);
    Ok(spec)
}

//! Phi-3 and Phi-4: q, k and v are one linear, gate and up another; a part of each head is rotated, with LongRoPE's two sets of
//! factors in long-context models.

use super::base::{Defaults, LLAMA, common};
use super::refused::refuse_unsupported;
use super::ropes::{PLAIN, RopeDefaults};
use crate::model::config_json::Config;
use crate::model::spec::ModelSpec;
use anyhow::Result;

pub fn phi3(config: &Config) -> Result<ModelSpec> {
    let rope = RopeDefaults {
        partial: Some(1.0),
        original_max_position_embeddings: Some(4096.0),
        longrope_only: true,
        ..PLAIN
    };
    let defaults = Defaults { max_position_embeddings: 4096, rms_norm_eps: 1e-5, rope, ..LLAMA };
    refuse_unsupported(config, &["sliding_window", "partial_rotary_factor"])?;
    let mut spec = common(config, &defaults)?;
    (spec.fused_qkv, spec.fused_gate_up) = (true, true);
    let window = config.size("sliding_window")?;
    spec.layers.iter_mut().for_each(|layer| layer.window = window);
    Ok(spec)
}

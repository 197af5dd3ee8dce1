//! Ministral 3: a Mistral with YaRN whose queries grow with the logarithm of the position.

use super::base::{Defaults, LLAMA, common};
use super::refused::refuse_unsupported;
use super::ropes::{PLAIN, RopeDefaults};
use crate::model::config_json::Config;
use crate::model::spec::ModelSpec;
use anyhow::Result;
use serde_json::json;

const CONTEXT: usize = 262_144;

pub fn ministral3(config: &Config) -> Result<ModelSpec> {
    let defaults = Defaults {
        num_key_value_heads: Some(8),
        head_dim: Some(128),
        max_position_embeddings: CONTEXT,
        rms_norm_eps: 1e-5,
        rope: RopeDefaults { grows: true, ..PLAIN },
        ..LLAMA
    };
    refuse_unsupported(config, &["sliding_window"])?;
    let mut fields = config.fields.clone();
    if config.get("rope_parameters").is_none() && config.get("rope_scaling").is_none() {
        let rope = json!({
            "rope_type": "yarn", "rope_theta": 1e6, "factor": 16, "original_max_position_embeddings": 16384, "beta_fast": 32,
            "beta_slow": 1, "mscale_all_dim": 1, "mscale": 1, "llama_4_scaling_beta": 0.1,
        });
        fields.insert("rope_parameters".to_string(), rope);
    }
    let config = Config { fields: &fields, origin: config.origin.clone() };
    let mut spec = common(&config, &defaults)?;
    let window = config.size("sliding_window")?;
    spec.layers.iter_mut().for_each(|layer| layer.window = window);
    Ok(spec)
}

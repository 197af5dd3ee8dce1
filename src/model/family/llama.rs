//! Llama and Mistral.

use super::base::{Defaults, LLAMA, common, read_biases};
use super::refused::refuse_unsupported;
use super::windows::sliding_window;
use crate::ensure_valid;
use crate::model::config_json::Config;
use crate::model::spec::ModelSpec;
use anyhow::Result;

pub fn llama(config: &Config) -> Result<ModelSpec> {
    refuse_unsupported(config, &["attention_bias", "mlp_bias"])?;
    let mut spec = common(config, &LLAMA)?;
    read_biases(config, &mut spec)?;
    Ok(spec)
}

pub fn mistral(config: &Config) -> Result<ModelSpec> {
    let defaults = Defaults { num_key_value_heads: Some(8), max_position_embeddings: 4096 * 32, ..LLAMA };
    refuse_unsupported(config, &["sliding_window"])?;
    let mut spec = common(config, &defaults)?;
    let window = sliding_window(config)?;
    ensure_valid!(
        window.is_none() || config.get("layer_types").is_none(),
        "{}: `layer_types` is not supported beside a sliding_window for this model_type; expected null",
        config.origin
    );
    spec.layers.iter_mut().for_each(|layer| layer.window = window);
    Ok(spec)
}

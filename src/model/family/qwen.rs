//! Qwen2 and Qwen3.

use super::base::{Defaults, LLAMA, common};
use super::refused::refuse_unsupported;
use super::windows::{set_windows, sliding_layers, sliding_window};
use crate::model::config_json::Config;
use crate::model::spec::{ModelSpec, QkNorm};
use anyhow::Result;

pub fn qwen(config: &Config, third: bool) -> Result<ModelSpec> {
    let defaults = Defaults {
        num_key_value_heads: Some(32),
        head_dim: third.then_some(128),
        max_position_embeddings: 32_768,
        ..LLAMA
    };
    let own = ["sliding_window", "use_sliding_window", "max_window_layers", "layer_types"];
    let bias = if third { config.flag("attention_bias")?.unwrap_or(false) } else { true };
    refuse_unsupported(config, &[&own[..], if third { &["attention_bias"] } else { &[] }].concat())?;
    let mut spec = common(config, &defaults)?;
    (spec.qkv_bias, spec.o_bias, spec.qk_norm) = (bias, third && bias, third.then_some(QkNorm::Heads));
    // The window counts only if it is switched on, and then for the layers from max_window_layers on.
    let used = config.flag("use_sliding_window")?.unwrap_or(false);
    let window = sliding_window(config)?.filter(|_| used);
    let first = match config.get("max_window_layers") {
        Some(value) => value.as_u64().ok_or_else(|| config.wrong("max_window_layers", "a whole number", value))?,
        None => 28,
    };
    let slides = sliding_layers(config, spec.num_hidden_layers, |layer| window.is_some() && layer as u64 >= first)?;
    set_windows(config, &mut spec, &slides, window)?;
    Ok(spec)
}

//! SmolLM3: a Llama in which every fourth layer is not rotated.

use super::base::{Defaults, LLAMA, common, read_biases};
use super::refused::refuse_unsupported;
use super::ropes::{PLAIN, RopeDefaults};
use super::windows::{if_used, set_windows};
use crate::ensure_valid;
use crate::model::config_json::Config;
use crate::model::spec::ModelSpec;
use anyhow::Result;

pub fn smollm3(config: &Config) -> Result<ModelSpec> {
    let defaults = Defaults {
        num_key_value_heads: Some(4),
        max_position_embeddings: 32_768,
        tie_word_embeddings: true,
        rope: RopeDefaults { theta: 2_000_000.0, ..PLAIN },
        ..LLAMA
    };
    let own = ["attention_bias", "mlp_bias", "no_rope_layers", "sliding_window", "use_sliding_window", "layer_types"];
    refuse_unsupported(config, &own)?;
    let mut spec = common(config, &defaults)?;
    read_biases(config, &mut spec)?;
    let rotated = rotated_layers(config, spec.num_hidden_layers)?;
    let window = if_used(config, config.size("sliding_window")?)?;
    set_windows(config, &mut spec, window, |layer| window.is_some() && !rotated[layer])?;
    for (layer, rotated) in spec.layers.iter_mut().zip(rotated) {
        layer.rope = rotated.then_some(0);
    }
    Ok(spec)
}

/// `no_rope_layers` holds 1 where a layer is rotated and 0 where it is not; it may be longer than the model.
fn rotated_layers(config: &Config, layers: usize) -> Result<Vec<bool>> {
    let Some(written) = config.numbers("no_rope_layers")? else {
        let interval = config.size("no_rope_layer_interval")?.unwrap_or(4);
        return Ok((1..=layers).map(|layer| !layer.is_multiple_of(interval)).collect());
    };
    ensure_valid!(
        written.len() >= layers && written.iter().all(|flag| [0.0, 1.0].contains(flag)),
        "{}: no_rope_layers holds {} values; expected a 0 or 1 for each of {layers} layers",
        config.origin,
        written.len()
    );
    Ok(written[..layers].iter().map(|&flag| flag == 1.0).collect())
}

//! Sliding windows of a config.json: how far, and in which layers.

use crate::model::config_json::Config;
use crate::model::spec::ModelSpec;
use crate::{ensure_valid, invalid};
use anyhow::Result;

/// The sliding window: 4096 if absent; null means none.
pub fn sliding_window(config: &Config) -> Result<Option<usize>> {
    if config.is_written("sliding_window") { config.size("sliding_window") } else { Ok(Some(4096)) }
}

/// Sets the window of the layers that slide.
pub fn set_windows(config: &Config, spec: &mut ModelSpec, slides: &[bool], window: Option<usize>) -> Result<()> {
    ensure_valid!(
        window.is_some() || !slides.contains(&true),
        "{}: some layers have sliding attention, and there is no window: `sliding_window` is null or \
         `use_sliding_window` is not true",
        config.origin
    );
    for (layer, slides) in spec.layers.iter_mut().zip(slides) {
        layer.window = window.filter(|_| *slides);
    }
    Ok(())
}

/// Which layers have a sliding window: as `layer_types` says, else by `rule`.
pub fn sliding_layers(config: &Config, layers: usize, rule: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
    let Some(types) = config.strings("layer_types")? else { return Ok((0..layers).map(rule).collect()) };
    ensure_valid!(
        types.len() == layers,
        "{}: layer_types names {} layers, num_hidden_layers says {layers}",
        config.origin,
        types.len()
    );
    let slides = types.into_iter().map(|kind| match kind {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => Err(invalid!(
            "{}: layer type `{other}` is not supported; supported: full_attention, sliding_attention",
            config.origin
        )),
    });
    slides.collect()
}

//! Sliding windows of a config.json: how far, and in which layers.

use super::layer_types::layers_of_type;
use crate::ensure_valid;
use crate::model::config_json::Config;
use crate::model::spec::ModelSpec;
use anyhow::Result;

/// The sliding window: 4096 if absent; null means none.
pub fn sliding_window(config: &Config) -> Result<Option<usize>> {
    if config.is_written("sliding_window") { config.size("sliding_window") } else { Ok(Some(4096)) }
}

/// The window, if `use_sliding_window` says that it is used.
pub fn if_used(config: &Config, window: Option<usize>) -> Result<Option<usize>> {
    let used = config.flag("use_sliding_window")?.unwrap_or(false);
    Ok(window.filter(|_| used))
}

/// Sets the window of the layers that slide, as `layer_types` says, else by `rule`; of two ropes the second is theirs.
pub fn set_windows(
    config: &Config,
    spec: &mut ModelSpec,
    window: Option<usize>,
    rule: impl Fn(usize) -> bool,
) -> Result<()> {
    let slides = layers_of_type(config, spec.num_hidden_layers, "sliding_attention", rule)?;
    ensure_valid!(
        window.is_some() || !slides.contains(&true),
        "{}: some layers have sliding attention, and there is no window: `sliding_window` is null or \
         `use_sliding_window` is not true",
        config.origin
    );
    let two = spec.ropes.len() == 2;
    for (layer, slides) in spec.layers.iter_mut().zip(slides) {
        layer.window = window.filter(|_| slides);
        layer.rope = Some(usize::from(two && slides));
    }
    Ok(())
}

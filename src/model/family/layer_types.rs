//! `layer_types` of a config.json: what kind of mixer each layer has.

use crate::model::config_json::Config;
use crate::{ensure_valid, invalid};
use anyhow::Result;

/// Which layers are of type `special`, the others having full attention: as `layer_types` says, else by `rule`.
///
/// # Errors
/// Types for another number of layers; a type that is neither.
pub fn layers_of_type(
    config: &Config,
    layers: usize,
    special: &str,
    rule: impl Fn(usize) -> bool,
) -> Result<Vec<bool>> {
    let Some(types) = config.strings("layer_types")? else { return Ok((0..layers).map(rule).collect()) };
    ensure_valid!(
        types.len() == layers,
        "{}: layer_types names {} layers, num_hidden_layers says {layers}",
        config.origin,
        types.len()
    );
    let are_special = types.into_iter().map(|kind| match kind {
        "full_attention" => Ok(false),
        other if other == special => Ok(true),
        other => Err(invalid!(
            "{}: layer type `{other}` is not supported; supported: full_attention, {special}",
            config.origin
        )),
    });
    are_special.collect()
}

//! Whether a checkpoint's output head is another matrix than its embedding.

use crate::checkpoint::{Checkpoint, is_gguf};
use crate::console::log;
use crate::names::{EMBEDDING, HEAD};
use anyhow::Result;
use serde_json::json;
use std::path::Path;
use std::sync::Once;

/// Whether the weights in a model's folder have a head that differs from the embedding. As in transformers, it is then used even
/// if `config.json` ties the two, as the configs of some multimodal models do by default.
///
/// # Errors
/// A failed read. Weights that are missing or malformed are left to whoever loads them.
pub fn differs(place: &Path) -> Result<bool> {
    if is_gguf(place) {
        return Ok(false);
    }
    let Ok(checkpoint) = Checkpoint::open(place) else { return Ok(false) };
    if checkpoint.info(HEAD).is_none() || checkpoint.info(EMBEDDING).is_none() || checkpoint.same(HEAD, EMBEDDING)? {
        return Ok(false);
    }
    Ok(true)
}

/// Says once that the tie does not hold.
pub fn tell(place: &Path) {
    static TOLD: Once = Once::new();
    let text = format!(
        "{} ties the output head to the embedding, but {HEAD} of the weights differs from it and is used, as in transformers",
        place.display()
    );
    TOLD.call_once(|| log::info(&text, json!({"model": place})));
}

//! Where a model comes from, and what of it is not its weights.

use crate::checkpoint::{is_gguf, model_config};
use crate::hub::{Resolved, at_revision};
use crate::tokenizer::hash_companions;
use anyhow::Result;
use serde_json::Value;

/// A hash of everything but the weights that determines what the model computes.
pub fn files_hash(base: &Resolved) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    if is_gguf(&base.place) {
        let (config, _) = model_config(&base.place)?;
        hasher.update(format!("{}\n", Value::Object(config)).as_bytes());
    }
    for place in [Some(&base.place), base.tokenizer.as_ref()].into_iter().flatten() {
        hash_companions(place, &mut hasher)?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// A folder, or a hub id with its revision.
pub fn source(model: &Resolved) -> String {
    let place = || model.place.display().to_string();
    model.id.as_ref().map_or_else(place, |id| at_revision(id, model.revision.as_deref()))
}

//! Where a model comes from, and what of it is not its weights.

use crate::checkpoint::{is_gguf, model_config};
use crate::hub::Resolved;
use crate::report::hash_file;
use anyhow::Result;
use serde_json::Value;

/// Files besides the weights that determine what a model computes and how text is tokenized.
const MODEL_FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// A hash of everything but the weights that determines what the model computes.
pub fn files_hash(base: &Resolved) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    if is_gguf(&base.place) {
        let (config, _) = model_config(&base.place)?;
        hasher.update(format!("{}\n", Value::Object(config)).as_bytes());
    }
    for dir in [Some(&base.place), base.tokenizer.as_ref()].into_iter().flatten() {
        for name in MODEL_FILES {
            let path = dir.join(name);
            if path.is_file() {
                hasher.update(format!("{name} {}\n", hash_file(&path)?).as_bytes());
            }
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// A folder, or a hub id with its revision.
pub fn source(model: &Resolved) -> String {
    match (&model.id, &model.revision) {
        (Some(id), Some(revision)) => format!("{id}@{revision}"),
        (Some(id), None) => id.clone(),
        (None, _) => model.place.display().to_string(),
    }
}

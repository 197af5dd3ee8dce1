//! Which files of a model repository are needed: configs, tokenizer, and the weights that [`Checkpoint`] would open.
//!
//! [`Checkpoint`]: crate::checkpoint::Checkpoint

use super::repo::Listing;
use crate::checkpoint::is_gguf_name;
use crate::error::listing;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Everything except the weights; the index is included.
pub(super) fn companions(files: &Listing) -> Vec<&str> {
    let wanted = |path: &&str| {
        let fixed = [
            INDEX,
            CONFIG,
            "generation_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
            "vocab.json",
            "merges.txt",
        ];
        let tokenizer = path.starts_with("tokenizer") && path.ends_with(".json");
        !path.contains('/') && (fixed.contains(path) || tokenizer || path.starts_with("chat_template."))
    };
    files.files.keys().map(String::as_str).filter(wanted).collect()
}

/// Refuses a repository without a config or without safetensors weights, before anything is fetched.
pub(super) fn check(files: &Listing) -> Result<()> {
    let names: Vec<&String> = files.files.keys().collect();
    if let Some(file) = names.iter().find(|name| is_gguf_name(name)) {
        ensure_valid!(
            files.files.contains_key(CONFIG),
            "it has GGUF files; name one of them after the repository, such as ORG/NAME:{file}"
        );
    }
    ensure_valid!(
        files.files.contains_key(CONFIG),
        "it has no {CONFIG}, so it is not a model that can be used here; its files: {}",
        listing(&names, 20)
    );
    ensure_valid!(
        files.files.contains_key(SINGLE) || files.files.contains_key(INDEX),
        "it has no {SINGLE} and no {INDEX} (pickled weights are never read); its files: {}",
        listing(&names, 20)
    );
    Ok(())
}

/// The GGUF file of that name in a repository.
///
/// # Errors
/// It is not there.
pub(super) fn gguf<'a>(files: &'a Listing, file: &str) -> Result<&'a str> {
    let found = files.files.get_key_value(file).map(|(name, _)| name.as_str());
    found.ok_or_else(|| {
        let others: Vec<&String> = files.files.keys().filter(|name| is_gguf_name(name)).collect();
        invalid!("it has no file {file}; its GGUF files: {}", listing(&others, 30))
    })
}

/// The weights: the shards that the index in `snapshot` names, or the single file.
///
/// # Errors
/// An index that names a file which the repository does not have.
pub(super) fn weights<'a>(files: &'a Listing, snapshot: &Path) -> Result<Vec<&'a str>> {
    if !files.files.contains_key(INDEX) {
        return Ok(files.files.get_key_value(SINGLE).map(|(name, _)| name.as_str()).into_iter().collect());
    }
    let path = snapshot.join(INDEX);
    let index: Value = serde_json::from_slice(&std::fs::read(&path)?)
        .map_err(|e| invalid!("{} is not valid JSON: {e}", path.display()))?;
    let map = index["weight_map"].as_object().into_iter().flat_map(|map| map.values());
    let shards: BTreeSet<&str> = map.filter_map(Value::as_str).collect();
    shards
        .into_iter()
        .map(|shard| {
            files
                .files
                .get_key_value(shard)
                .map(|(name, _)| name.as_str())
                .ok_or_else(|| invalid!("{INDEX} names `{}`, which the repository does not have", shard.escape_debug()))
        })
        .collect()
}

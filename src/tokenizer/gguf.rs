//! A tokenizer as GGUF files have it: tokens with their kinds, merges, and the name by which llama.cpp knows how to split
//! text before merges.

mod keys;
mod kind;
mod read;
mod splitting;
mod write;

use super::source::{CONFIG, GENERATION, Source, TOKENIZER};
use crate::checkpoint::gguf::Header;
use anyhow::{Context, Result};
use serde_json::json;
use std::path::Path;

/// What the tokenizer of a file is made from.
///
/// # Errors
/// A malformed file; a tokenizer that the file does not say all of, or of a kind that is not known.
pub fn source(path: &Path) -> Result<Source> {
    let header = Header::read(path)?;
    read::source(&header).map_err(|why| {
        why.context(format!(
            "{} needs the tokenizer of its model: name a folder or hub id that has it, with model.tokenizer in a config or \
             --tokenizer; that of the file cannot be used",
            path.display()
        ))
    })
}

/// Writes the tokenizer of a file as a folder has it.
///
/// # Errors
/// As [`source`]; a failed write.
pub fn unpack(path: &Path, dir: &Path) -> Result<()> {
    let Source { tokenizer, mut config, eos_ids, template, .. } = source(path)?;
    config.insert("tokenizer_class".to_string(), json!("PreTrainedTokenizerFast"));
    config.extend(template.map(|template| ("chat_template".to_string(), json!(template))));
    let generation = json!({"eos_token_id": eos_ids});
    for (name, json) in [(TOKENIZER, tokenizer.into()), (CONFIG, config.into()), (GENERATION, generation)] {
        let path = dir.join(name);
        std::fs::write(&path, format!("{json}\n")).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;

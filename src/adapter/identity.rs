//! `asft.json` in an adapter folder: a hash of the base weights that the adapter was trained on.
//!
//! PEFT, vLLM and llama.cpp ignore the file. An adapter of the right shapes on the wrong base runs without complaint
//! and gives nonsense; with this file asft can tell.

use super::Adapter;
use crate::checkpoint::{Checkpoint, combined_hash, weights_hash};
use crate::ensure_valid;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::path::Path;

const FILE: &str = "asft.json";

/// Which weights an adapter belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseIdentity {
    pub asft_version: String,
    /// BLAKE3 over the adapted modules' base weights.
    pub base_weights: String,
}

impl BaseIdentity {
    pub fn of(adapter: &Adapter, base: &Checkpoint) -> Result<Self> {
        let modules: Vec<String> = adapter.modules.keys().cloned().collect();
        let base_weights = combined_hash(&weights_hash(base, &modules)?);
        Ok(Self { asft_version: env!("CARGO_PKG_VERSION").to_string(), base_weights })
    }

    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Checks the adapter in `dir` against `base`; an adapter without the file, from another tool, passes.
    pub fn check(dir: &Path, adapter: &Adapter, base: &Checkpoint) -> Result<()> {
        let Some(recorded) = Self::read(dir)? else { return Ok(()) };
        ensure_valid!(
            recorded.base_weights == Self::of(adapter, base)?.base_weights,
            "the adapter in {} was trained on other weights than this model's (it names {}); give the model that it \
             was trained on, or delete {} to use it all the same",
            dir.display(),
            adapter.base.as_deref().unwrap_or("no base"),
            dir.join(FILE).display()
        );
        Ok(())
    }

    /// What the adapter in `dir` records of its base; `None` for one from another tool.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let text =
            std::fs::read_to_string(&path).map_err(|e| crate::invalid!("cannot read {}: {e}", path.display()))?;
        let recorded = serde_json::from_str(&text)
            .map_err(|e| crate::invalid!("{} is malformed: {e} (delete it to skip the check)", path.display()))?;
        Ok(Some(recorded))
    }

    pub fn file_name() -> &'static str {
        FILE
    }
}

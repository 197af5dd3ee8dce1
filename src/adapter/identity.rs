//! `asft.json` in an adapter folder: a hash of the base weights that the adapter was trained on.
//!
//! PEFT, vLLM and llama.cpp pass the file by. An adapter of the right shapes on the wrong base runs without a word and
//! gives nonsense; with this file asft can tell.

use super::Adapter;
use crate::checkpoint::Checkpoint;
use crate::console::log;
use crate::ensure_valid;
use crate::error::listing;
use crate::method::direction_file::{Directions, combined_hash, weights_hash};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
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

    /// Checks the adapter of `dir` against `base`; an adapter of another tool, without the file, passes.
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

    /// Checks that `directions` has every module of the adapter of `dir`, in its shape and (where the adapter says what it
    /// was trained on) computed from the weights that it was trained on. No model is needed for that.
    ///
    /// # Errors
    /// One error that lists every module that is missing or has another shape; other weights.
    pub fn check_direction(dir: &Path, adapter: &Adapter, directions: &Directions) -> Result<()> {
        let mut problems = vec![];
        for (name, module) in &adapter.modules {
            let (d_out, d_in) = (module.b.dims()[0], module.a.dims()[1]);
            match directions.shape(name) {
                None => problems.push(format!("{name} is not in the direction")),
                Some((rows, columns, _)) if (rows, columns) != (d_out, d_in) => {
                    problems.push(format!("{name} is [{d_out}, {d_in}] here and [{rows}, {columns}] in the direction"))
                }
                Some(_) => {}
            }
        }
        let header = directions.header();
        let (base, aligned) = (adapter.base.as_deref().unwrap_or("an unnamed base"), &header.aligned.id);
        ensure_valid!(
            problems.is_empty(),
            "the adapter in {} (for {base}) does not fit the direction (of {aligned}); compute one for its base and \
             modules with `asft direction --target-modules`: {}",
            dir.display(),
            listing(&problems, 8)
        );
        let Some(recorded) = Self::read(dir)? else {
            let last = |id: &str| Path::new(id).file_name().map(|name| name.to_ascii_lowercase());
            if last(base) != last(aligned) {
                let text = format!(
                    "the adapter names {base} as its base, the direction is of {aligned}; nothing in {} tells whether \
                     these are the same weights",
                    dir.display()
                );
                log::warn(&text, json!({"adapter_base": base, "direction_of": aligned}));
            }
            return Ok(());
        };
        let hashes: BTreeMap<String, String> = adapter
            .modules
            .keys()
            .filter_map(|name| Some((name.clone(), header.module_hashes.get(name)?.clone())))
            .collect();
        ensure_valid!(
            recorded.base_weights == combined_hash(&hashes),
            "the adapter in {} (for {base}) was trained on other weights than the aligned model of the direction \
             ({aligned}); compute the direction of its own base with `asft direction`",
            dir.display()
        );
        Ok(())
    }

    fn read(dir: &Path) -> Result<Option<Self>> {
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

//! `asft.json` in an adapter folder: a hash of the base weights that the adapter was trained on.
//!
//! PEFT, vLLM and llama.cpp ignore the file. An adapter of the right shapes on the wrong base runs without complaint
//! and gives nonsense; with this file asft can tell.

use super::Adapter;
use crate::checkpoint::sketch::{distance, shortened, sketch};
use crate::checkpoint::{Checkpoint, combined_hash, weight_hash};
use crate::console::log;
use crate::ensure_valid;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

const FILE: &str = "asft.json";

/// Which weights an adapter belongs to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaseIdentity {
    pub asft_version: String,
    /// BLAKE3 over the adapted modules' base weights.
    pub base_weights: String,
    /// The weights of a base that is stored quantised, by module, so that the model that they were made of is known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub quantised: BTreeMap<String, QuantisedWeight>,
}

/// A weight of such a base, as far as the one that it was made of can be known by it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantisedWeight {
    /// How it was stored.
    pub stored: String,
    /// How far it may be from what it was made of, ‖W − W₀‖ / ‖W₀‖.
    pub worst_error: f64,
    /// A shortened sketch of it.
    pub sketch: Vec<f32>,
}

impl BaseIdentity {
    pub fn of(adapter: &Adapter, base: &Checkpoint) -> Result<Self> {
        let (mut hashes, mut quantised) = (BTreeMap::new(), BTreeMap::new());
        for module in adapter.modules.keys() {
            let name = format!("{module}.weight");
            let values = base.read_f32(&name)?;
            let info = base.info(&name).context("a tensor that was just read")?;
            hashes.insert(module.clone(), weight_hash(&info.shape, &values));
            if base.is_quantised() {
                // Exact, where a weight among them is not quantised.
                let worst_error = info.stored.worst_error().unwrap_or(0.0);
                let (stored, sketch) = (info.stored.to_string(), shortened(&sketch(&values)));
                quantised.insert(module.clone(), QuantisedWeight { stored, worst_error, sketch });
            }
        }
        let base_weights = combined_hash(&hashes);
        Ok(Self { asft_version: env!("CARGO_PKG_VERSION").to_string(), base_weights, quantised })
    }

    /// Whether the base weights of all the adapter's modules were quantised forms of the weights with the sketches that `of`
    /// knows by module; says how far they are from these.
    pub fn is_quantised_form(&self, adapter: &Adapter, of: impl Fn(&str) -> Result<Option<Vec<f32>>>) -> Result<bool> {
        let mut largest = 0f64;
        for module in adapter.modules.keys() {
            let Some(weight) = self.quantised.get(module) else { return Ok(false) };
            let Some(sketch) = of(module)? else { return Ok(false) };
            let distance = distance(&weight.sketch, &shortened(&sketch));
            if distance > weight.worst_error {
                return Ok(false);
            }
            largest = largest.max(distance);
        }
        let text = format!(
            "the adapter was trained on quantised weights that are at most {:.1} % of their norm from these, and is taken to \
             belong to them",
            100.0 * largest
        );
        log::info(&text, json!({"relative_distance": largest}));
        Ok(!self.quantised.is_empty())
    }

    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Checks the adapter in `dir` against `base`; an adapter without the file, from another tool, passes.
    pub fn check(dir: &Path, adapter: &Adapter, base: &Checkpoint) -> Result<()> {
        let Some(recorded) = Self::read(dir)? else { return Ok(()) };
        let full = |module: &str| Ok(Some(sketch(&base.read_f32(&format!("{module}.weight"))?)));
        ensure_valid!(
            recorded.base_weights == Self::of(adapter, base)?.base_weights
                || !base.is_quantised() && recorded.is_quantised_form(adapter, full)?,
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

//! `[lora]` of the config: the adapter's shape and place.

use super::patterns::Patterns;
use crate::error::{listing, nearest};
use crate::model::ModelSpec;
use crate::names::{Targets, layer_number, resolve_targets, short_name};
use crate::{ensure_valid, invalid};
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `[lora]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoraOptions {
    /// Rank r of the update B·A.
    pub rank: usize,
    /// The update counts alpha/rank-fold in the forward pass. A whole number, as every reader of PEFT adapters expects.
    pub alpha: usize,
    /// Share of an adapter's inputs that is zeroed in training.
    pub dropout: f64,
    /// The linear layers that get an adapter and a penalty: a list of names, "all-linear", or a regex on whole module
    /// paths. With `train.method = "full"` these are the layers that get the penalty.
    pub target_modules: Targets,
    /// Only the targets in these layers of the model, counted from 0; without it, in all.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Other ranks for some targets: `{ v_proj = 16, "layers.0.self_attn.q_proj" = 4 }`. A key is a regular expression
    /// for a module path or its end from a dot on, as in PEFT.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Other alphas for some targets, in the same way. vLLM and llama.cpp do not read it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub alpha_pattern: BTreeMap<String, usize>,
    /// Scale by alpha/√rank rather than alpha/rank (rsLoRA).
    pub use_rslora: bool,
    /// The learning rate of B is so many times `train.learning_rate`, that of A (LoRA+). The same for both without it.
    pub loraplus_lr_ratio: Option<f64>,
    /// Continue from this PEFT adapter folder rather than from a fresh adapter.
    pub init_adapter: Option<String>,
}

impl Default for LoraOptions {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 32,
            dropout: 0.05,
            target_modules: Targets::List(vec!["q_proj".to_string(), "v_proj".to_string()]),
            layers_to_transform: None,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            use_rslora: false,
            loraplus_lr_ratio: None,
            init_adapter: None,
        }
    }
}

/// r and lora_alpha of one module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModuleSize {
    pub rank: usize,
    pub alpha: usize,
}

impl LoraOptions {
    /// The targeted module paths of a model, in natural order.
    ///
    /// # Errors
    /// Targets or layers that the model does not have.
    pub fn targets(&self, spec: &ModelSpec) -> Result<Vec<String>> {
        let mut targets = resolve_targets(&self.target_modules, &spec.linear_modules())?;
        let Some(layers) = &self.layers_to_transform else { return Ok(targets) };
        let count = spec.num_hidden_layers;
        let missing: Vec<String> = layers.iter().filter(|&&layer| layer >= count).map(usize::to_string).collect();
        ensure_valid!(
            missing.is_empty(),
            "layers_to_transform names layer {}; the model has layers 0 to {}",
            listing(&missing, 8),
            count.saturating_sub(1)
        );
        targets.retain(|module| layer_number(module).is_some_and(|layer| layers.contains(&layer)));
        ensure_valid!(!targets.is_empty(), "layers_to_transform leaves none of the modules that target_modules names");
        Ok(targets)
    }

    /// Rank and alpha of each of `targets`.
    ///
    /// # Errors
    /// A pattern that matches none of them, or two that disagree about one.
    pub fn sizes(&self, targets: &[String]) -> Result<BTreeMap<String, ModuleSize>> {
        let ranks = values(&self.rank_pattern, "rank_pattern", self.rank, targets)?;
        let alphas = values(&self.alpha_pattern, "alpha_pattern", self.alpha, targets)?;
        let sizes = ranks.into_iter().zip(alphas).map(|(rank, alpha)| ModuleSize { rank, alpha });
        Ok(targets.iter().cloned().zip(sizes).collect())
    }
}

/// The value of each target: from its pattern, else the general one.
fn values(patterns: &BTreeMap<String, usize>, key: &str, general: usize, targets: &[String]) -> Result<Vec<usize>> {
    let entries = patterns.iter().map(|(pattern, &value)| (pattern.as_str(), value));
    let patterns = Patterns::new(entries).map_err(|problem| invalid!("{key}: {problem}"))?;
    let idle: Vec<String> = patterns.idle(targets).map(|pattern| described(pattern, targets)).collect();
    ensure_valid!(
        idle.is_empty(),
        "{key}: nothing matches {} among the targeted modules, such as {}",
        listing(&idle, 8),
        targets.first().map_or("none", String::as_str)
    );
    let value = |module: &String| {
        let mut matching = patterns.matching(module);
        let Some((pattern, value)) = matching.next() else { return Ok(general) };
        // PEFT takes the first, but a TOML table has no order to rely on.
        match matching.find(|(_, other)| *other != value) {
            Some((other, _)) => {
                Err(invalid!("{key}: both `{pattern}` and `{other}` match {module}; make one narrower"))
            }
            None => Ok(value),
        }
    };
    targets.iter().map(value).collect()
}

fn described(pattern: &str, targets: &[String]) -> String {
    let near = nearest(pattern, targets.iter().map(|module| short_name(module)));
    near.map_or(format!("`{pattern}`"), |near| format!("`{pattern}` (did you mean `{near}`?)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules() -> Vec<String> {
        let layer = |n: usize| ["q_proj", "v_proj"].map(|name| format!("model.layers.{n}.self_attn.{name}"));
        (0..12).flat_map(layer).collect()
    }

    fn sizes(ranks: &[(&str, usize)], alphas: &[(&str, usize)]) -> Result<Vec<(usize, usize)>> {
        let map = |entries: &[(&str, usize)]| entries.iter().map(|(key, value)| (key.to_string(), *value)).collect();
        let options = LoraOptions { rank_pattern: map(ranks), alpha_pattern: map(alphas), ..Default::default() };
        let sizes = options.sizes(&modules())?;
        Ok(modules().iter().map(|module| (sizes[module].rank, sizes[module].alpha)).collect())
    }

    #[test]
    fn patterns_choose_ranks_and_alphas() {
        let found = sizes(&[("q_proj", 4), (r"layers\.1\.self_attn\.v_proj", 2)], &[("layers.(3|11).*", 5)]).unwrap();
        assert_eq!(found[..4], [(4, 32), (8, 32), (4, 32), (2, 32)]);
        assert_eq!((found[6..8].to_vec(), found[23]), (vec![(4, 5), (8, 5)], (8, 5)));
    }

    #[test]
    fn patterns_that_cannot_be_meant_are_refused() {
        for (ranks, needles) in [
            (vec![("qproj", 4)], vec!["rank_pattern: nothing matches `qproj` (did you mean `q_proj`?)"]),
            (vec![("q_proj", 4), (".*q_proj", 2)], vec!["both `.*q_proj` and `q_proj` match model.layers.0"]),
            (vec![("(", 4)], vec!["`(` is not a regular expression", "unclosed group"]),
        ] {
            let message = sizes(&ranks, &[]).unwrap_err().to_string();
            assert!(needles.iter().all(|needle| message.contains(needle)), "{message}");
        }
        assert!(sizes(&[("q_proj", 4), (".*q_proj", 4)], &[]).is_ok());
    }
}

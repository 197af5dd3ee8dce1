//! `[lora]` applied to a model: which modules get an adapter, and of what size.

use super::options::LoraOptions;
use super::patterns::Patterns;
use crate::error::{listing, nearest};
use crate::model::ModelSpec;
use crate::names::{Targets, in_block, layer_number, names_module, resolve_targets, short_name, targets_module};
use crate::{ensure_valid, invalid};
use anyhow::Result;
use std::collections::BTreeMap;

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
    /// Targets or layers that the model does not have; a name that fits nothing in the chosen layers.
    pub fn targets(&self, spec: &ModelSpec) -> Result<Vec<String>> {
        self.refuse_experts(spec)?;
        let resolved = resolve_targets(&self.target_modules, &spec.linear_modules());
        let mut targets = resolved.map_err(|error| match spec.wrapped {
            true => error
                .context("of a multimodal model only the text model's linears can be targets, not its vision tower's"),
            false => error,
        })?;
        let Some(layers) = &self.layers_to_transform else { return Ok(targets) };
        let count = spec.num_hidden_layers;
        let missing: Vec<String> = layers.iter().filter(|&&layer| layer >= count).map(usize::to_string).collect();
        ensure_valid!(
            missing.is_empty(),
            "layers_to_transform names layer {}; the model has layers 0 to {}",
            listing(&missing, 8),
            count.saturating_sub(1)
        );
        let all = targets.clone();
        targets.retain(|module| layer_number(module).is_some_and(|layer| layers.contains(&layer)));
        self.refuse_idle(&targets, &all)?;
        ensure_valid!(!targets.is_empty(), "layers_to_transform leaves none of the modules that target_modules names");
        Ok(targets)
    }

    /// Names that fit something in the model, among `all`, and nothing in the chosen layers: they would train nothing and say nothing.
    fn refuse_idle(&self, chosen: &[String], all: &[String]) -> Result<()> {
        let Targets::List(names) = &self.target_modules else { return Ok(()) };
        let idle = names.iter().find(|name| !chosen.iter().any(|module| targets_module(name, module)));
        let Some(name) = idle else { return Ok(()) };
        let fitting = all.iter().filter(|module| targets_module(name, module));
        let listed = |layers: &mut dyn Iterator<Item = usize>| {
            listing(&layers.map(|layer| layer.to_string()).collect::<Vec<_>>(), 8)
        };
        Err(invalid!(
            "target_modules: nothing matches `{name}` in the layers of layers_to_transform ({}); leave it out, or add a layer that has it, \
             such as {}",
            listed(&mut self.layers_to_transform.iter().flatten().copied()),
            listed(&mut fitting.filter_map(|module| layer_number(module)))
        ))
    }

    /// Names that only a mixture's router or experts have.
    fn refuse_experts(&self, spec: &ModelSpec) -> Result<()> {
        let Targets::List(names) = &self.target_modules else { return Ok(()) };
        let modules = spec.linear_modules();
        let matrices = (0..spec.num_hidden_layers)
            .flat_map(|layer| spec.mixture_matrices(layer).into_iter().map(move |part| in_block(layer, &part)));
        let matrices: Vec<String> = matrices.collect();
        let of_experts = |name: &&String| {
            let is_in = |all: &[String]| all.iter().any(|module| names_module(name, module));
            !is_in(&modules) && (is_in(&matrices) || name.ends_with("experts"))
        };
        let refused: Vec<String> = names.iter().filter(of_experts).cloned().collect();
        ensure_valid!(
            refused.is_empty() || matrices.is_empty(),
            "target_modules: {} names experts or their router, which take no adapters: transformers holds all experts of a \
             layer in one tensor, for which PEFT has no linear layer; target the layers of attention",
            listing(&refused, 8)
        );
        Ok(())
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

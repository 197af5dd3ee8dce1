//! Names: which linears a checkpoint's blocks have, in what order they are listed, which of them `target_modules` means,
//! and what tensors are called.

mod pattern;
mod tensors;
mod wrapped;

pub use pattern::PathPattern;
pub use tensors::{
    ATTENTION, BLOCK_LINEARS, BLOCKS, DELTA_NET, DOWN, EMBEDDING, EXPERT_LINEARS, FINAL_NORM, Forms, HEAD, INTAKE_NORM,
    LAYER_EMBEDDING, LAYER_PROJECTION, LAYER_PROJECTION_NORM, LAYER_SCALE, LoraMatrix, PEFT_PREFIX, ROUTER,
    expert_part, in_block, in_expert, is_in_delta_net, is_in_shared_expert, is_intake, split_block,
};
pub use wrapped::{Naming, text_name};

use crate::error::{listing, nearest};
use crate::{ensure_valid, invalid};
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeSet;

/// `target_modules`, with PEFT's meaning of each form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "Written", into = "Written")]
#[schemars(with = "Written")]
pub enum Targets {
    /// Names: a module matches if its path is one of them or ends with a dot and one of them.
    List(Vec<String>),
    /// "all-linear": every linear of the transformer blocks (neither embeddings nor the head).
    AllLinear,
    /// A regular expression that the whole module path must match.
    Regex(String),
}

/// `target_modules` as the file has it.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Written {
    /// Module names, such as `q_proj`.
    Names(Vec<String>),
    /// "all-linear", or a regular expression for the whole module path.
    Text(String),
}

impl From<Written> for Targets {
    fn from(written: Written) -> Self {
        match written {
            Written::Names(names) => Self::List(names),
            Written::Text(text) if text == "all-linear" => Self::AllLinear,
            Written::Text(text) => Self::Regex(text),
        }
    }
}

impl From<Targets> for Written {
    fn from(targets: Targets) -> Self {
        match targets {
            Targets::List(names) => Self::Names(names),
            Targets::AllLinear => Self::Text("all-linear".into()),
            Targets::Regex(pattern) => Self::Text(pattern),
        }
    }
}

/// Every linear of the transformer blocks but routers and experts: modules `<...>.layers.N.<...>` whose `weight` is among the
/// names of 2-D tensors, in natural order. What some checkpoints have for the prediction of further tokens is no part of the model.
pub fn block_linears<'a>(matrices: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut modules: Vec<String> = matrices
        .filter_map(|name| name.strip_suffix(".weight"))
        .filter(|module| !module.starts_with("mtp."))
        .filter(|module| layer_of(module).is_some_and(|(_, _, part)| part != ROUTER && expert_part(part).is_none()))
        .map(str::to_string)
        .collect();
    sort_naturally(&mut modules);
    modules
}

/// A module path split into what precedes the layer number, the number, and what follows it.
fn layer_of(module: &str) -> Option<(&str, usize, &str)> {
    let start = if module.starts_with("layers.") { 0 } else { module.find(".layers.")? + 1 };
    let (number, rest) = module[start + "layers.".len()..].split_once('.')?;
    Some((&module[..start], number.parse().ok()?, rest))
}

/// The layer of a module path, such as 3 of `model.layers.3.self_attn.q_proj`.
pub fn layer_number(module: &str) -> Option<usize> {
    layer_of(module).map(|(_, layer, _)| layer)
}

/// The last component of a module path, such as `q_proj`.
pub fn short_name(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

/// Sorts module paths by layer number, then in the order in which a block uses its linears.
pub fn sort_naturally(modules: &mut [String]) {
    modules.sort_by(|a, b| sort_key(a).cmp(&sort_key(b)));
}

fn sort_key(module: &str) -> (&str, usize, usize, &str) {
    let (prefix, layer, rest) = layer_of(module).unwrap_or((module, 0, ""));
    (prefix, layer, place_in_block(short_name(module)), rest)
}

/// By a linear's last name; those that no block of ours has come last.
fn place_in_block(short: &str) -> usize {
    BLOCK_LINEARS.iter().position(|name| short_name(name) == short).unwrap_or(BLOCK_LINEARS.len())
}

/// The modules, out of `modules`, that `targets` means; in natural order.
///
/// # Errors
/// An entry or a pattern that matches nothing; an invalid pattern. The error lists the candidates.
pub fn resolve_targets(targets: &Targets, modules: &[String]) -> Result<Vec<String>> {
    ensure_valid!(!modules.is_empty(), "the checkpoint has no linear layers in transformer blocks to target");
    let mut chosen: Vec<String> = match targets {
        Targets::AllLinear => modules.to_vec(),
        Targets::List(names) => {
            check_every_name_matches(names, modules)?;
            modules.iter().filter(|module| names.iter().any(|name| targets_module(name, module))).cloned().collect()
        }
        Targets::Regex(pattern) => {
            let whole = PathPattern::new("target_modules", pattern)?;
            let mut chosen = vec![];
            for module in modules {
                if whole.matches(&path_for(pattern, module))? {
                    chosen.push(module.clone());
                }
            }
            ensure_valid!(
                !chosen.is_empty(),
                "target_modules = \"{pattern}\" matches no module (a string is a regular expression for the whole \
                 path, such as {}; names go in a list); the linears are {}",
                modules[0],
                candidates(modules)
            );
            chosen
        }
    };
    sort_naturally(&mut chosen);
    chosen.dedup();
    Ok(chosen)
}

/// Whether `name`, an entry of a list of targets, means `module`.
pub fn names_module(name: &str, module: &str) -> bool {
    module.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// A module's path in the terms of a target, which may be those of a multimodal class.
fn path_for<'a>(target: &str, module: &'a str) -> Cow<'a, str> {
    if wrapped::is_meant(target) { Naming::Wrapper.name(module) } else { module.into() }
}

/// The same for a target, which may be written with the names of a multimodal class.
pub fn targets_module(name: &str, module: &str) -> bool {
    names_module(name, &path_for(name, module))
}

fn check_every_name_matches(names: &[String], modules: &[String]) -> Result<()> {
    ensure_valid!(!names.is_empty(), "target_modules is empty; the linears are {}", candidates(modules));
    let unmatched: Vec<&String> =
        names.iter().filter(|name| !modules.iter().any(|module| targets_module(name, module))).collect();
    if unmatched.is_empty() {
        return Ok(());
    }
    let described: Vec<String> = unmatched
        .iter()
        .map(|name| {
            let near = nearest(name, modules.iter().map(|module| short_name(module)));
            near.map_or(format!("`{name}`"), |near| format!("`{name}` (did you mean `{near}`?)"))
        })
        .collect();
    Err(invalid!("target_modules: nothing matches {}; the linears are {}", described.join(", "), candidates(modules)))
}

/// The distinct last names, in block order.
fn candidates(modules: &[String]) -> String {
    let distinct: BTreeSet<(usize, &str)> = modules
        .iter()
        .map(|module| {
            let short = short_name(module);
            (place_in_block(short), short)
        })
        .collect();
    listing(&distinct.into_iter().map(|(_, short)| short).collect::<Vec<_>>(), 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules() -> Vec<String> {
        let mut all = vec![];
        for layer in [10, 2, 0] {
            for name in ["mlp.down_proj", "self_attn.v_proj", "self_attn.q_proj"] {
                all.push(format!("model.layers.{layer}.{name}"));
            }
        }
        all
    }

    fn targets(toml: &str) -> Targets {
        #[derive(Deserialize)]
        struct Holder {
            t: Targets,
        }
        toml::from_str::<Holder>(&format!("t = {toml}")).unwrap().t
    }

    #[test]
    fn a_list_matches_by_suffix_and_sorts_by_layer_number() {
        let found = resolve_targets(&targets(r#"["v_proj", "self_attn.q_proj"]"#), &modules()).unwrap();
        assert_eq!(found[0], "model.layers.0.self_attn.q_proj");
        assert_eq!(found[1], "model.layers.0.self_attn.v_proj");
        assert_eq!(found[2], "model.layers.2.self_attn.q_proj");
        assert_eq!(found[5], "model.layers.10.self_attn.v_proj");
        assert!(resolve_targets(&targets(r#"["_proj"]"#), &modules()).is_err());
    }

    #[test]
    fn a_string_is_all_linear_or_a_whole_match() {
        assert_eq!(resolve_targets(&targets(r#""all-linear""#), &modules()).unwrap().len(), 9);
        let found = resolve_targets(&targets(r#"".*[.]0[.].*_proj|nothing""#), &modules()).unwrap();
        assert_eq!(found.len(), 3);
        let error = resolve_targets(&targets(r#""q_proj""#), &modules()).unwrap_err().to_string();
        assert!(error.contains("q_proj, v_proj, down_proj"), "{error}");
        assert!(resolve_targets(&targets(r#""(""#), &modules()).is_err());
    }

    #[test]
    fn an_unmatched_name_lists_candidates_and_the_nearest() {
        let error = resolve_targets(&targets(r#"["q_proj", "v_porj"]"#), &modules()).unwrap_err();
        assert_eq!(crate::error::exit_code(&error), 2);
        let text = error.to_string();
        assert!(text.contains("`v_porj` (did you mean `v_proj`?)"), "{text}");
        assert!(text.contains("q_proj, v_proj, down_proj"), "{text}");
    }

    #[test]
    fn targets_survive_a_round_trip() {
        for written in [r#"["q_proj"]"#, r#""all-linear""#, r#"".*q_proj""#] {
            let targets = targets(written);
            let text = serde_json::to_string(&targets).unwrap();
            assert_eq!(serde_json::from_str::<Targets>(&text).unwrap(), targets);
        }
    }
}

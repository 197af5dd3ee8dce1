//! `adapter_config.json`: what PEFT writes, read with every field that changes the maths honoured or refused.

use super::{Adapter, AdapterModule};
use crate::error::regex_problem;
use crate::model::BLOCK_LINEARS;
use crate::names::names_module;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use regex::Regex;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The fields of an `adapter_config.json` that asft uses.
#[derive(Clone, Debug)]
pub struct PeftConfig {
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f64,
    pub use_rslora: bool,
    pub base: Option<String>,
    pub revision: Option<String>,
    /// `target_modules` where it is a list; a string there is a regex in Python's dialect and is not interpreted.
    targets: Option<Vec<String>>,
    rank_pattern: Vec<(Regex, f64)>,
    alpha_pattern: Vec<(Regex, f64)>,
}

/// Fields whose non-neutral values asft cannot honour, with the values that mean "not used".
const NEUTRAL: [(&str, &[Value]); 14] = [
    ("use_dora", &[Value::Bool(false)]),
    ("fan_in_fan_out", &[Value::Bool(false)]),
    ("lora_bias", &[Value::Bool(false)]),
    ("modules_to_save", &[]),
    ("layer_replication", &[]),
    ("trainable_token_indices", &[]),
    ("target_parameters", &[]),
    ("alora_invocation_tokens", &[]),
    ("arrow_config", &[]),
    ("use_qalora", &[Value::Bool(false)]),
    ("use_bdlora", &[Value::Bool(false)]),
    ("velora_config", &[]),
    ("kasa_config", &[]),
    ("monteclora_config", &[]),
];

/// Initialisations that leave the base as it is. Others (PiSSA, OLoRA, LoftQ, CorDA) change the base's weights, so
/// that their adapters mean something else on the original base.
const HARMLESS_INIT: [&str; 4] = ["gaussian", "orthogonal", "eva", "mini-batch"];

impl PeftConfig {
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            invalid!("cannot read {}: {e} (expected a PEFT adapter folder, as `asft train` writes it)", path.display())
        })?;
        let value: Value =
            serde_json::from_str(&text).map_err(|e| invalid!("{} is not valid JSON: {e}", path.display()))?;
        let fields = value.as_object().ok_or_else(|| invalid!("{} is not a JSON object", path.display()))?;
        Self::parse(fields, &path.display().to_string())
    }

    fn parse(fields: &Map<String, Value>, origin: &str) -> Result<Self> {
        let get = |key: &str| fields.get(key).filter(|value| !value.is_null());
        let kind = get("peft_type").and_then(Value::as_str).unwrap_or("missing");
        ensure_valid!(kind == "LORA", "{origin}: peft_type is {kind}; only LORA adapters are supported");
        for (key, neutral) in NEUTRAL {
            if let Some(value) = get(key).filter(|value| !neutral.contains(value) && !is_empty(value)) {
                return Err(invalid!("{origin}: `{key}` = {value} is not supported"));
            }
        }
        if let Some(bias) = get("bias").filter(|bias| *bias != "none") {
            return Err(invalid!("{origin}: `bias` = {bias} is not supported; expected \"none\""));
        }
        if let Some(init) = get("init_lora_weights").and_then(Value::as_str) {
            let known = HARMLESS_INIT.contains(&init);
            ensure_valid!(known, "{origin}: `init_lora_weights` = \"{init}\" changes the base and is not supported");
        }
        let number = |key: &str| {
            let positive = |x: &f64| x.is_finite() && *x > 0.0;
            let value = get(key).and_then(Value::as_f64).filter(positive);
            value.ok_or_else(|| invalid!("{origin}: `{key}` should be a positive number, got {:?}", get(key)))
        };
        let rank = number("r")?;
        ensure_valid!(rank.fract() == 0.0, "{origin}: `r` should be an integer, got {rank}");
        let dropout = get("lora_dropout").map_or(Some(0.0), Value::as_f64).filter(|share| (0.0..1.0).contains(share));
        let dropout = dropout
            .ok_or_else(|| invalid!("{origin}: `lora_dropout` should be in [0, 1), got {:?}", get("lora_dropout")))?;
        let use_rslora = get("use_rslora")
            .map_or(Some(false), Value::as_bool)
            .ok_or_else(|| invalid!("{origin}: `use_rslora` should be true or false, got {:?}", get("use_rslora")))?;
        let text = |key: &str| get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(String::from);
        Ok(Self {
            rank: rank as usize,
            alpha: number("lora_alpha")?,
            dropout,
            use_rslora,
            targets: target_list(get("target_modules"), origin)?,
            base: text("base_model_name_or_path"),
            revision: text("revision"),
            rank_pattern: patterns(get("rank_pattern"), "rank_pattern", origin)?,
            alpha_pattern: patterns(get("alpha_pattern"), "alpha_pattern", origin)?,
        })
    }

    /// How the matrices of `modules` contradict `target_modules`, in words: PEFT adapts just what that names, passes
    /// other matrices by, and starts afresh where one is missing, with no more than a warning.
    pub fn contradictions<'a>(&self, modules: impl Iterator<Item = &'a str> + Clone) -> Vec<String> {
        let Some(names) = &self.targets else { return vec![] };
        let strays = modules.clone().filter(|module| !names.iter().any(|name| names_module(name, module)));
        let mut found: Vec<String> = strays.map(|module| format!("{module} is not named there")).collect();
        // A list may name layers of other families too; those of this one are always there to adapt.
        let known = |name: &str| BLOCK_LINEARS.iter().any(|linear| names_module(name, linear));
        let empty =
            names.iter().filter(|name| known(name) && !modules.clone().any(|module| names_module(name, module)));
        found.extend(empty.map(|name| format!("`{name}` is named there and has no matrices")));
        found
    }

    /// r of a module: its pattern's, else the general one.
    pub fn rank_of(&self, module: &str) -> usize {
        matching(&self.rank_pattern, module).map_or(self.rank, |rank| rank as usize)
    }

    /// lora_alpha of a module: its pattern's, else the general one.
    pub fn alpha_of(&self, module: &str) -> f64 {
        matching(&self.alpha_pattern, module).unwrap_or(self.alpha)
    }
}

fn target_list(value: Option<&Value>, origin: &str) -> Result<Option<Vec<String>>> {
    let wrong = |value: &Value| {
        invalid!("{origin}: `target_modules` should be a list of names or a regular expression, got {value}")
    };
    match value {
        None | Some(Value::String(_)) => Ok(None),
        Some(Value::Array(names)) => {
            let names = names.iter().map(|name| name.as_str().map(String::from).ok_or_else(|| wrong(name)));
            names.collect::<Result<_>>().map(Some)
        }
        Some(other) => Err(wrong(other)),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// A pattern's key is a regex that must match a module path's end at a dot, as in PEFT.
fn patterns(value: Option<&Value>, key: &str, origin: &str) -> Result<Vec<(Regex, f64)>> {
    let Some(value) = value else { return Ok(vec![]) };
    let map = value.as_object().ok_or_else(|| invalid!("{origin}: `{key}` should be an object, got {value}"))?;
    map.iter()
        .map(|(pattern, value)| {
            let regex = Regex::new(&format!(r"^(.*\.)?({pattern})$"))
                .map_err(|e| invalid!("{origin}: `{key}` has a bad pattern `{pattern}`: {}", regex_problem(&e)))?;
            let number = value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
            let number = number
                .ok_or_else(|| invalid!("{origin}: `{key}` of `{pattern}` should be a positive number, got {value}"))?;
            Ok((regex, number))
        })
        .collect()
}

fn matching(patterns: &[(Regex, f64)], module: &str) -> Option<f64> {
    patterns.iter().find(|(regex, _)| regex.is_match(module)).map(|(_, value)| *value)
}

/// The `adapter_config.json` of an adapter, with the field set and types that PEFT, vLLM and llama.cpp read.
pub fn to_json(adapter: &Adapter, all_modules: &[String]) -> Value {
    let general_rank = most_common(adapter.modules.values().map(AdapterModule::rank));
    let general_alpha = most_common(adapter.modules.values().map(|module| module.alpha as usize));
    let mut rank_pattern = Map::new();
    let mut alpha_pattern = Map::new();
    for (name, module) in &adapter.modules {
        // Keys are regexes to PEFT.
        let key = regex::escape(name);
        if module.rank() != general_rank {
            rank_pattern.insert(key.clone(), json!(module.rank()));
        }
        if module.alpha as usize != general_alpha || module.alpha.fract() != 0.0 {
            alpha_pattern.insert(key, number(module.alpha));
        }
    }
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "auto_mapping": null,
        "base_model_name_or_path": adapter.base,
        "revision": adapter.revision,
        "inference_mode": true,
        "r": general_rank,
        "lora_alpha": general_alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": target_modules(adapter, all_modules),
        "bias": "none",
        "fan_in_fan_out": false,
        "use_rslora": adapter.use_rslora,
        "use_dora": false,
        "init_lora_weights": true,
        "modules_to_save": null,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "layers_to_transform": null,
        "layers_pattern": null,
    })
}

/// An integer where the value is one: some readers insist on it.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 { json!(value as u64) } else { json!(value) }
}

fn most_common(values: impl Iterator<Item = usize>) -> usize {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    values.for_each(|value| *counts.entry(value).or_default() += 1);
    counts.into_iter().max_by_key(|&(_, count)| count).map_or(1, |(value, _)| value)
}

/// Short names (`q_proj`) where they name just the adapted modules, full paths otherwise.
fn target_modules(adapter: &Adapter, all_modules: &[String]) -> Vec<String> {
    let last = |module: &str| module.rsplit('.').next().unwrap_or(module).to_string();
    let mut names: Vec<String> = vec![];
    for module in all_modules.iter().filter(|module| adapter.modules.contains_key(*module)) {
        if !names.contains(&last(module)) {
            names.push(last(module));
        }
    }
    let covered = all_modules.iter().filter(|module| names.contains(&last(module))).count();
    if covered == adapter.modules.len() { names } else { adapter.modules.keys().cloned().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: Value) -> Result<PeftConfig> {
        let mut fields = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 12});
        for (key, field) in value.as_object().unwrap() {
            fields[key] = field.clone();
        }
        PeftConfig::parse(fields.as_object().unwrap(), "adapter_config.json")
    }

    #[test]
    fn patterns_match_at_a_dot() {
        let config = parse(json!({"rank_pattern": {"q_proj": 8, "layers.1.self_attn.v_proj": 2}})).unwrap();
        assert_eq!(config.rank_of("model.layers.0.self_attn.q_proj"), 8);
        assert_eq!(config.rank_of("model.layers.1.self_attn.v_proj"), 2);
        assert_eq!(config.rank_of("model.layers.11.self_attn.v_proj"), 4);
        assert_eq!(config.alpha_of("model.layers.0.self_attn.q_proj"), 12.0);
    }

    #[test]
    fn matrices_and_target_modules_must_agree() {
        let found = |targets: Value| {
            let modules = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"];
            parse(json!({"target_modules": targets})).unwrap().contradictions(modules.into_iter()).join("; ")
        };
        assert_eq!(found(json!(["q_proj"])), "");
        assert_eq!(found(json!(["q_proj", "query_key_value"])), "");
        assert_eq!(found(json!(".*(?=q)q_proj")), "");
        assert_eq!(found(json!(null)), "");
        assert_eq!(found(json!(["q_proj", "v_proj"])), "`v_proj` is named there and has no matrices");
        assert!(found(json!(["layers.0.self_attn.q_proj"])).contains("layers.1.self_attn.q_proj is not named there"));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        for (fields, needle) in [
            (json!({"use_dora": true}), "use_dora"),
            (json!({"modules_to_save": ["lm_head"]}), "modules_to_save"),
            (json!({"bias": "all"}), "bias"),
            (json!({"peft_type": "LOHA"}), "LOHA"),
            (json!({"init_lora_weights": "pissa"}), "pissa"),
            (json!({"r": 0}), "`r`"),
            (json!({"use_rslora": "yes"}), "use_rslora"),
            (json!({"lora_dropout": "0.1"}), "lora_dropout"),
            (json!({"bias": 3}), "bias"),
            (json!({"target_modules": [1]}), "target_modules"),
            (json!({"rank_pattern": {"(": 2}}), "unclosed group"),
        ] {
            let error = parse(fields).unwrap_err();
            assert!(error.to_string().contains(needle), "{error:#}");
            assert_eq!(error.to_string().lines().count(), 1, "{error:#}");
        }
        assert!(parse(json!({"modules_to_save": [], "use_dora": false, "layer_replication": null})).is_ok());
    }
}

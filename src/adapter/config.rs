//! `adapter_config.json` as PEFT writes it; every field that changes the maths is honoured or refused.

use super::patterns::Patterns;
use super::reach::{Reach, is_empty};
use super::stored_targets::targets;
use super::{Adapter, AdapterModule};
use crate::names::short_name;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
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
    pub reach: Reach,
    rank_pattern: Patterns<f64>,
    alpha_pattern: Patterns<f64>,
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
/// their adapters do not fit the original base.
const HARMLESS_INIT: [&str; 4] = ["gaussian", "orthogonal", "eva", "mini-batch"];

impl PeftConfig {
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            let dir = path.parent().unwrap_or(Path::new("."));
            let inside = dir.join("adapter");
            let hint = if inside.is_dir() { format!(" (did you mean {}?)", inside.display()) } else { String::new() };
            invalid!(
                "{} is no PEFT adapter folder, as `asft train` writes it{hint}: {}: {e}",
                dir.display(),
                path.display()
            )
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
            value.ok_or_else(|| invalid!("{origin}: `{key}` should be a positive number, {}", found(get(key))))
        };
        let rank = number("r")?;
        ensure_valid!(rank.fract() == 0.0, "{origin}: `r` should be an integer, got {rank}");
        let dropout = get("lora_dropout").map_or(Some(0.0), Value::as_f64).filter(|share| (0.0..1.0).contains(share));
        let dropout = dropout
            .ok_or_else(|| invalid!("{origin}: `lora_dropout` should be in [0, 1), {}", found(get("lora_dropout"))))?;
        let use_rslora = get("use_rslora")
            .map_or(Some(false), Value::as_bool)
            .ok_or_else(|| invalid!("{origin}: `use_rslora` should be true or false, {}", found(get("use_rslora"))))?;
        let text = |key: &str| get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(String::from);
        Ok(Self {
            rank: rank as usize,
            alpha: number("lora_alpha")?,
            dropout,
            use_rslora,
            reach: Reach::parse(fields, origin)?,
            base: text("base_model_name_or_path"),
            revision: text("revision"),
            rank_pattern: patterns(get("rank_pattern"), "rank_pattern", origin)?,
            alpha_pattern: patterns(get("alpha_pattern"), "alpha_pattern", origin)?,
        })
    }

    /// r of a module: from its pattern, else the general one.
    pub fn rank_of(&self, module: &str) -> usize {
        self.rank_pattern.of(module).map_or(self.rank, |rank| rank as usize)
    }

    /// lora_alpha of a module: from its pattern, else the general one.
    pub fn alpha_of(&self, module: &str) -> f64 {
        self.alpha_pattern.of(module).unwrap_or(self.alpha)
    }
}

/// What stands in the file, in words.
fn found(value: Option<&Value>) -> String {
    value.map_or("found none".to_string(), |value| format!("got {value}"))
}

fn patterns(value: Option<&Value>, key: &str, origin: &str) -> Result<Patterns<f64>> {
    let Some(value) = value else { return Ok(Patterns::new([]).unwrap_or_default()) };
    let map = value.as_object().ok_or_else(|| invalid!("{origin}: `{key}` should be an object, got {value}"))?;
    let number = |(pattern, value): (_, &Value)| match value.as_f64().filter(|x| x.is_finite() && *x > 0.0) {
        Some(number) => Ok((pattern, number)),
        None => Err(invalid!("{origin}: `{key}` of `{pattern}` should be a positive number, got {value}")),
    };
    let entries: Vec<(&str, f64)> = map.iter().map(|(k, v)| (k.as_str(), v)).map(number).collect::<Result<_>>()?;
    Patterns::new(entries).map_err(|problem| invalid!("{origin}: `{key}`: {problem}"))
}

/// The `adapter_config.json` of an adapter, with the fields and types that PEFT, vLLM and llama.cpp read.
pub fn to_json(adapter: &Adapter, all_modules: &[String]) -> Value {
    // vLLM allots memory by `r`.
    let general_rank = adapter.modules.values().map(AdapterModule::rank).max().unwrap_or(1);
    let general_alpha = most_common(adapter.modules.values().map(|module| module.alpha as usize));
    let stored: Vec<(Cow<'_, str>, &AdapterModule)> =
        adapter.modules.iter().map(|(name, module)| (adapter.layout.name(name), module)).collect();
    let ranks = stored.iter().map(|(name, module)| (name.as_ref(), module.rank() as f64));
    let alphas = stored.iter().map(|(name, module)| (name.as_ref(), module.alpha));
    let adapted: Vec<&String> = adapter.modules.keys().collect();
    let (target_modules, layers_to_transform) = targets(adapter.layout, &adapted, all_modules);
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
        "target_modules": target_modules,
        "bias": "none",
        "fan_in_fan_out": false,
        "use_rslora": adapter.use_rslora,
        "use_dora": false,
        "init_lora_weights": true,
        "modules_to_save": null,
        "rank_pattern": exceptions(ranks, general_rank),
        "alpha_pattern": exceptions(alphas, general_alpha),
        "layers_to_transform": layers_to_transform,
        "layers_pattern": null,
    })
}

/// An integer if the value is one: some readers insist on it.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 { json!(value as u64) } else { json!(value) }
}

fn most_common(values: impl Iterator<Item = usize>) -> usize {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    values.for_each(|value| *counts.entry(value).or_default() += 1);
    counts.into_iter().max_by_key(|&(_, count)| count).map_or(1, |(value, _)| value)
}

/// The values that differ from the general one: by short name (`q_proj`) if all modules of that name share a value,
/// else by path. Keys are regular expressions to PEFT.
fn exceptions<'a>(values: impl Iterator<Item = (&'a str, f64)> + Clone, general: usize) -> Map<String, Value> {
    let mut found = Map::new();
    for (name, value) in values.clone().filter(|(_, value)| *value != general as f64) {
        let short = short_name(name);
        let uniform = values.clone().all(|(other, v)| short_name(other) != short || v == value);
        found.insert(regex::escape(if uniform { short } else { name }), number(value));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Naming;
    use candle_core::{DType, Device, Tensor};

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
    fn sizes_and_places_are_written_as_briefly_as_they_can_be() {
        let all: Vec<String> = (0..3)
            .flat_map(|n| ["q_proj", "v_proj"].map(|name| format!("model.layers.{n}.self_attn.{name}")))
            .collect();
        let written = |keep: &dyn Fn(&str) -> bool, rank: &dyn Fn(&str) -> usize, alpha: f64| {
            let zeros = |shape| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
            let module = |name: &String| {
                let (a, b) = (zeros((rank(name), 8)), zeros((8, rank(name))));
                let alpha = if name.contains(".1.") { alpha } else { 16.0 };
                (name.clone(), AdapterModule { a, b, alpha })
            };
            let modules = all.iter().filter(|name| keep(name)).map(module).collect();
            let adapter =
                Adapter { modules, use_rslora: false, dropout: 0.0, base: None, revision: None, layout: Naming::Text };
            let json = to_json(&adapter, &all);
            ["target_modules", "layers_to_transform", "rank_pattern", "alpha_pattern"].map(|key| json[key].to_string())
        };
        let short = written(&|_| true, &|name| if name.ends_with("q_proj") { 2 } else { 4 }, 16.0);
        assert_eq!(short, [r#"["q_proj","v_proj"]"#, "null", r#"{"q_proj":2}"#, "{}"]);
        let some = written(&|name| !name.contains(".2."), &|_| 4, 6.5);
        let alphas = r#"{"model\\.layers\\.1\\.self_attn\\.q_proj":6.5,"model\\.layers\\.1\\.self_attn\\.v_proj":6.5}"#;
        assert_eq!(some, [r#"["q_proj","v_proj"]"#, "[0,1]", "{}", alphas]);
        let odd = written(&|name| name != "model.layers.2.self_attn.v_proj", &|_| 4, 16.0);
        assert_eq!((odd[0].matches("model.layers").count(), odd[1].as_str()), (5, "null"));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        for (fields, needle) in [
            (json!({"use_dora": true}), "use_dora"),
            (json!({"modules_to_save": ["lm_head"]}), "modules_to_save"),
            (json!({"bias": "all"}), "bias"),
            (json!({"peft_type": "LOHA"}), "LOHA"),
            (json!({"init_lora_weights": "pissa"}), "pissa"),
            (json!({"r": 0}), "`r` should be a positive number, got 0"),
            (json!({"use_rslora": "yes"}), "use_rslora"),
            (json!({"lora_dropout": "0.1"}), "lora_dropout"),
            (json!({"bias": 3}), "bias"),
            (json!({"rank_pattern": {"(": 2}}), "unclosed group"),
        ] {
            let error = parse(fields).unwrap_err();
            assert!(error.to_string().contains(needle), "{error:#}");
            assert_eq!(error.to_string().lines().count(), 1, "{error:#}");
        }
        assert!(parse(json!({"modules_to_save": [], "use_dora": false, "layer_replication": null})).is_ok());
    }
}

//! `target_modules`, `exclude_modules` and `layers_to_transform` of an `adapter_config.json`: which modules PEFT adapts.
//!
//! A list names modules by path or by the end of one; a string is a regular expression in Python's dialect for the whole
//! path (`re.fullmatch`), or "all-linear". PEFT ignores matrices of other modules, and initialises missing ones afresh,
//! with no more than a warning; here both are refused.

use crate::names::{Forms, PathPattern, is_in_delta_net, is_in_shared_expert, is_intake, layer_number, names_module};
use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Which modules an adapter is for.
#[derive(Clone, Debug)]
pub struct Reach {
    /// `target_modules`; `None` where the file does not say.
    named: Option<Named>,
    /// `exclude_modules`
    excluded: Option<Named>,
    /// `layers_to_transform`
    layers: Option<BTreeSet<usize>>,
}

/// Modules as a key of the config names them.
#[derive(Clone, Debug)]
enum Named {
    List(Vec<String>),
    Pattern(PathPattern),
    AllLinear,
}

impl Named {
    fn parse(key: &str, value: &Value, origin: &str) -> Result<Self> {
        let wrong = |value: &Value| {
            invalid!("{origin}: `{key}` should be a list of names or a regular expression, got {value}")
        };
        match value {
            // PEFT takes the word in any case, and knows it for `target_modules` only.
            Value::String(text) if key == "target_modules" && text.eq_ignore_ascii_case("all-linear") => {
                Ok(Self::AllLinear)
            }
            Value::String(pattern) => PathPattern::new(&format!("{origin}: `{key}`"), pattern).map(Self::Pattern),
            Value::Array(names) => {
                let names = names.iter().map(|name| name.as_str().map(String::from).ok_or_else(|| wrong(name)));
                names.collect::<Result<_>>().map(Self::List)
            }
            other => Err(wrong(other)),
        }
    }

    fn names(&self, module: &str) -> Result<bool> {
        match self {
            Self::List(names) => Ok(names.iter().any(|name| names_module(name, module))),
            Self::Pattern(pattern) => pattern.matches(module),
            Self::AllLinear => Ok(true),
        }
    }
}

impl Reach {
    /// Reads the keys of an `adapter_config.json`; `origin` names the file.
    ///
    /// # Errors
    /// A value of another type, an invalid regular expression, `layers_to_transform` beside a string (which PEFT
    /// refuses), a `layers_pattern` that is not supported.
    pub fn parse(fields: &Map<String, Value>, origin: &str) -> Result<Self> {
        let get = |key: &str| fields.get(key).filter(|value| !value.is_null());
        let named = |key: &str| get(key).map(|value| Named::parse(key, value, origin)).transpose();
        let layers = layers(get("layers_to_transform"), get("layers_pattern"), origin)?;
        let excluded = get("exclude_modules").filter(|value| !is_empty(value) && *value != "");
        let reach = Self {
            named: named("target_modules")?,
            excluded: excluded.map(|value| Named::parse("exclude_modules", value, origin)).transpose()?,
            layers,
        };
        ensure_valid!(
            reach.layers.is_none() || matches!(reach.named, None | Some(Named::List(_))),
            "{origin}: `layers_to_transform` has no meaning beside a `target_modules` that is a string"
        );
        Ok(reach)
    }

    /// How the matrices of `modules` contradict these keys, in words.
    ///
    /// # Errors
    /// An expression that backtracks for too long.
    pub fn contradictions<'a>(&self, modules: impl Iterator<Item = &'a str> + Clone) -> Result<Vec<String>> {
        let mut found = vec![];
        for module in modules.clone() {
            if let Some(excluded) = &self.excluded
                && excluded.names(module)?
            {
                found.push(format!("{module} is named in `exclude_modules`"));
            } else if !self.adapts(module)? {
                found.push(format!("{module} is not named there"));
            }
        }
        if let Some(Named::List(names)) = &self.named {
            // A list may also name layers of other families; this family's always exist.
            let fused = |linear: &str| modules.clone().any(|module| module.ends_with(linear));
            let forms = Forms {
                fused_qkv: fused("self_attn.qkv_proj"),
                fused_gate_up: fused("mlp.gate_up_proj"),
                delta_net: modules.clone().any(is_in_delta_net),
                shared_expert: modules.clone().any(is_in_shared_expert),
                layer_inputs: modules.clone().any(is_intake),
            };
            let known = |name: &str| forms.linears().any(|linear| names_module(name, linear));
            let empty =
                names.iter().filter(|name| known(name) && !modules.clone().any(|module| names_module(name, module)));
            found.extend(empty.map(|name| format!("`{name}` is named there and has no matrices")));
            let empty =
                self.layers.iter().flatten().filter(|&&layer| modules.clone().all(|m| layer_number(m) != Some(layer)));
            found.extend(empty.map(|layer| format!("layer {layer} is in `layers_to_transform` and has no matrices")));
        }
        Ok(found)
    }

    fn adapts(&self, module: &str) -> Result<bool> {
        match &self.named {
            None => Ok(true),
            // A whole path counts whatever `layers_to_transform` says.
            Some(Named::List(names)) if names.iter().any(|name| name == module) => Ok(true),
            Some(named) => Ok(named.names(module)? && self.is_in_layers(module)),
        }
    }

    fn is_in_layers(&self, module: &str) -> bool {
        let Some(layers) = &self.layers else { return true };
        layer_number(module).is_some_and(|layer| layers.contains(&layer))
    }
}

/// A number or a list of them; an empty list means all layers, as in PEFT.
fn layers(value: Option<&Value>, pattern: Option<&Value>, origin: &str) -> Result<Option<BTreeSet<usize>>> {
    let Some(value) = value.filter(|value| !is_empty(value)) else { return Ok(None) };
    let numbers = match value {
        Value::Array(numbers) => numbers.iter().map(Value::as_u64).collect(),
        number => number.as_u64().map(|number| vec![number]),
    };
    let numbers: Vec<u64> = numbers.ok_or_else(|| {
        invalid!("{origin}: `layers_to_transform` should be a layer number or a list of them, got {value}")
    })?;
    if let Some(pattern) = pattern.filter(|pattern| !is_empty(pattern)) {
        let usual = *pattern == "layers" || *pattern == json!(["layers"]) || *pattern == "";
        ensure_valid!(usual, "{origin}: `layers_pattern` = {pattern} is not supported; expected \"layers\"");
    }
    Ok(Some(numbers.into_iter().map(|number| number as usize).collect()))
}

/// An empty list or object, which PEFT takes as not given.
pub fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULES: [&str; 2] = ["model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.q_proj"];

    fn reach(fields: Value) -> Result<Reach> {
        Reach::parse(fields.as_object().unwrap(), "adapter_config.json")
    }

    fn found(fields: Value) -> String {
        reach(fields).unwrap().contradictions(MODULES.into_iter()).unwrap().join("; ")
    }

    #[test]
    fn matrices_and_target_modules_must_agree() {
        let found = |targets: Value| found(json!({"target_modules": targets}));
        for agreeing in [
            json!(["q_proj"]),
            json!(["q_proj", "query_key_value"]),
            json!(".*(?=q)q_proj"),
            json!(r".*\.[02]\..*(?<!k)_proj"),
            json!("All-Linear"),
            json!(null),
        ] {
            assert_eq!(found(agreeing.clone()), "", "{agreeing}");
        }
        assert_eq!(found(json!(["q_proj", "v_proj"])), "`v_proj` is named there and has no matrices");
        assert_eq!(found(json!(["layers.0.self_attn.q_proj"])), format!("{} is not named there", MODULES[1]));
        assert_eq!(found(json!(r".*\.0\..*")), format!("{} is not named there", MODULES[1]));
        for none in ["q_proj", "zzz", "model", ""] {
            assert_eq!(found(json!(none)).matches("is not named there").count(), 2, "{none}");
        }
    }

    #[test]
    fn excluded_modules_have_no_matrices() {
        let found = |excluded: Value| found(json!({"target_modules": ["q_proj"], "exclude_modules": excluded}));
        for nothing in [json!([]), json!(null), json!(""), json!("q_proj"), json!("all-linear"), json!(["v_proj"])] {
            assert_eq!(found(nothing.clone()), "", "{nothing}");
        }
        for second in [json!(["layers.2.self_attn.q_proj"]), json!(r".*\.2\..*")] {
            assert_eq!(found(second), format!("{} is named in `exclude_modules`", MODULES[1]));
        }
    }

    #[test]
    fn matrices_and_layers_to_transform_must_agree() {
        let found =
            |layers: Value, targets: Value| found(json!({"target_modules": targets, "layers_to_transform": layers}));
        assert_eq!(found(json!([0, 2]), json!(["q_proj"])), "");
        assert_eq!(found(json!([]), json!(["q_proj"])), "");
        assert_eq!(found(json!(0), json!(["q_proj"])), "model.layers.2.self_attn.q_proj is not named there");
        assert_eq!(found(json!(0), json!(["q_proj", "model.layers.2.self_attn.q_proj"])), "");
        let missing = found(json!([0, 1, 2]), json!(["q_proj"]));
        assert_eq!(missing, "layer 1 is in `layers_to_transform` and has no matrices");
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (fields, needle) in [
            (json!({"target_modules": [1]}), "target_modules"),
            (json!({"target_modules": {"q": 1}}), "target_modules"),
            (json!({"target_modules": "((("}), "`target_modules` = \"(((\" is not a valid regular expression"),
            (json!({"exclude_modules": "[a"}), "`exclude_modules` = \"[a\" is not a valid regular expression"),
            (json!({"layers_to_transform": [-1]}), "layers_to_transform"),
            (json!({"layers_to_transform": 1, "layers_pattern": "h"}), "layers_pattern"),
            (json!({"layers_to_transform": 1, "target_modules": ".*"}), "has no meaning beside"),
        ] {
            let error = reach(fields).unwrap_err();
            assert_eq!(crate::error::exit_code(&error), 2);
            assert!(error.to_string().contains(needle), "{error:#}");
            assert_eq!(error.to_string().lines().count(), 1, "{error:#}");
        }
    }
}

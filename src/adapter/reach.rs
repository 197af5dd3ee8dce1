//! `target_modules`, `exclude_modules` and `layers_to_transform` of an `adapter_config.json`: which modules PEFT adapts.
//!
//! A list names modules by path or by the end of one; a string is a regular expression in Python's dialect for the whole
//! path (`re.fullmatch`), or "all-linear". PEFT ignores matrices of other modules, and initialises missing ones afresh,
//! with no more than a warning; here both are refused. A name that fits nothing in the base is none of either: PEFT takes it as
//! long as others fit.

use crate::names::{PathPattern, layer_number, names_module};
use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
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
    /// Every linear of the blocks.
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
            Self::AllLinear => Ok(layer_number(module).is_some()),
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
    pub fn contradictions<'a>(&self, modules: impl Iterator<Item = &'a str>) -> Result<Vec<String>> {
        let mut found = vec![];
        for module in modules {
            if self.is_excluded(module)? {
                found.push(format!("{module} is named in `exclude_modules`"));
            } else if !self.adapts(module)? {
                found.push(format!("{module} is not named there"));
            }
        }
        Ok(found)
    }

    /// What these keys name among the modules that a base `has` and that have no matrices `here`, in words.
    ///
    /// # Errors
    /// An expression that backtracks for too long.
    pub fn missing<'a>(
        &self,
        has: impl Iterator<Item = Cow<'a, str>>,
        here: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>> {
        let mut found = vec![];
        for module in has.filter(|module| !here(module)) {
            if self.named.is_some() && !self.is_excluded(&module)? && self.adapts(&module)? {
                found.push(format!("{module} is named there and has no matrices"));
            }
        }
        Ok(found)
    }

    /// Numbers in `layers_to_transform` that a model of so many layers does not have.
    pub fn layers_beyond(&self, count: usize) -> Vec<String> {
        self.layers.iter().flatten().filter(|&&layer| layer >= count).map(usize::to_string).collect()
    }

    fn is_excluded(&self, module: &str) -> Result<bool> {
        self.excluded.as_ref().map_or(Ok(false), |excluded| excluded.names(module))
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

    /// What is missing of a base with q and v in three layers, and k in the first.
    fn missing(fields: Value) -> String {
        let reach = reach(fields).unwrap();
        let linear = |layer: usize, name: &str| Cow::from(format!("model.layers.{layer}.self_attn.{name}"));
        let linears = (0..3).flat_map(|layer| ["q_proj", "v_proj"].map(|name| linear(layer, name)));
        let has = linears.chain([linear(0, "k_proj"), "lm_head".into()]);
        reach.missing(has, |module| MODULES.contains(&module)).unwrap().join("; ")
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
        assert_eq!(found(json!(["layers.0.self_attn.q_proj"])), format!("{} is not named there", MODULES[1]));
        assert_eq!(found(json!(r".*\.0\..*")), format!("{} is not named there", MODULES[1]));
        for none in ["q_proj", "zzz", "model", ""] {
            assert_eq!(found(json!(none)).matches("is not named there").count(), 2, "{none}");
        }
    }

    #[test]
    fn every_module_of_the_base_that_is_named_has_matrices() {
        let lacks = |modules: &[&str]| {
            let each = modules.iter().map(|module| format!("{module} is named there and has no matrices"));
            each.collect::<Vec<_>>().join("; ")
        };
        let [q, k, v] =
            [(1, "q"), (0, "k"), (2, "v")].map(|(n, name)| format!("model.layers.{n}.self_attn.{name}_proj"));
        let targets = |targets: Value| missing(json!({"target_modules": targets}));
        assert_eq!(targets(json!(null)), "");
        assert_eq!(targets(json!(["layers.0.self_attn.q_proj", "layers.2.self_attn.q_proj"])), "");
        assert_eq!(targets(json!(["q_proj", "in_proj_z"])), lacks(&[&q]));
        assert_eq!(targets(json!(r".*\.[02]\..*(q|k)_proj")), lacks(&[&k]));
        assert_eq!(targets(json!(r".*\.[02]\..*q_proj|lm_head")), lacks(&["lm_head"]));
        assert_eq!(targets(json!("all-linear")).matches("has no matrices").count(), 5);
        let layers =
            |layers: Value, targets: Value| missing(json!({"target_modules": targets, "layers_to_transform": layers}));
        assert_eq!(layers(json!([0, 2]), json!(["q_proj"])), "");
        // Layer 2 has no keys of its own.
        assert_eq!(layers(json!([2]), json!(["q_proj", "k_proj"])), "");
        assert_eq!(layers(json!([0, 2]), json!(["q_proj", "k_proj"])), lacks(&[&k]));
        assert_eq!(layers(json!(2), json!(["q_proj", "v_proj"])), lacks(&[&v]));
        let excluded = json!({"target_modules": ["q_proj", "v_proj"], "exclude_modules": [q, "v_proj"]});
        assert_eq!(missing(excluded), "");
        assert_eq!(reach(json!({"layers_to_transform": [1, 3, 7]})).unwrap().layers_beyond(3), ["3", "7"]);
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
    fn matrices_are_in_layers_to_transform() {
        let found =
            |layers: Value, targets: Value| found(json!({"target_modules": targets, "layers_to_transform": layers}));
        assert_eq!(found(json!([0, 1, 2]), json!(["q_proj"])), "");
        assert_eq!(found(json!([]), json!(["q_proj"])), "");
        assert_eq!(found(json!(0), json!(["q_proj"])), "model.layers.2.self_attn.q_proj is not named there");
        assert_eq!(found(json!(0), json!(["q_proj", "model.layers.2.self_attn.q_proj"])), "");
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

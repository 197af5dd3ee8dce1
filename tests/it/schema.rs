//! The schemas of configs, suites and comparisons, as given to editors.

use crate::shipped_configs::configs;
use crate::support::command::{asft, json, refused};
use serde_json::{Value, json};

fn schema(kind: &[&str]) -> Value {
    json(asft(&[&["schema"], kind].concat()))
}

/// Whether `value` meets `schema`, for the part of JSON Schema that these schemas use.
fn meets(root: &Value, schema: &Value, value: &Value) -> bool {
    let known =
        ["$defs", "$ref", "$schema", "additionalProperties", "anyOf", "const", "default", "description", "enum"];
    let known = [&known[..], &["format", "items", "maxItems", "minItems", "minimum", "oneOf", "properties"]].concat();
    schema.as_object().into_iter().flatten().for_each(|(key, _)| {
        assert!(
            known.contains(&key.as_str())
                || ["title", "type", "maximum", "required", "x-older"].contains(&key.as_str()),
            "{key}"
        );
    });
    let target = schema["$ref"].as_str().map(|pointer| root.pointer(&pointer[1..]).unwrap());
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => vec![],
    };
    let is = |kind: &&str| match *kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        "null" => value.is_null(),
        other => panic!("type {other}"),
    };
    let one_of = |key: &str, exactly: bool| {
        let Some(members) = schema[key].as_array() else { return true };
        let count = members.iter().filter(|member| meets(root, member, value)).count();
        if exactly { count == 1 } else { count > 0 }
    };
    let items = value.as_array().into_iter().flatten().all(|item| meets(root, &schema["items"], item));
    let length = value.as_array().map_or(0, Vec::len) as u64;
    let fields = value.as_object().into_iter().flatten().all(|(name, field)| match &schema["properties"][name] {
        Value::Null => match &schema["additionalProperties"] {
            Value::Bool(allowed) => *allowed,
            more => meets(root, more, field),
        },
        known => meets(root, known, field),
    });
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let complete = value.as_object().is_none_or(|fields| required.into_iter().all(|name| fields.contains_key(name)));
    target.is_none_or(|target| meets(root, target, value))
        && (kinds.is_empty() || kinds.iter().any(is))
        && schema.get("const").is_none_or(|only| only == value)
        && schema["enum"].as_array().is_none_or(|words| words.contains(value))
        && value.as_f64().is_none_or(|number| schema["minimum"].as_f64().is_none_or(|least| number >= least))
        && (!value.is_array() || schema["minItems"].as_u64().is_none_or(|least| length >= least))
        && (!value.is_array() || schema["maxItems"].as_u64().is_none_or(|most| length <= most))
        && one_of("oneOf", true)
        && one_of("anyOf", false)
        && items
        && fields
        && complete
}

/// Checks that the shipped files of `folders` meet `schema`, and that `wrong` does not; returns the number of files.
fn check(schema: &Value, folders: &[&str], wrong: &[Value]) -> usize {
    let files: Vec<_> = folders.iter().copied().flat_map(configs).collect();
    for path in &files {
        let file: toml::Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
        assert!(meets(schema, schema, &serde_json::to_value(file).unwrap()), "{}", path.display());
    }
    for wrong in wrong {
        assert!(!meets(schema, schema, wrong), "{wrong}");
    }
    files.len()
}

#[test]
fn the_shipped_configs_meet_the_schema() {
    let wrong = [
        json!({"lora": {"rnak": 4}}),
        json!({"lora": {"rank": "4"}}),
        json!({"lora": {"layers_to_transform": [0, -1]}}),
        json!({"lora": {"rank_pattern": {"q_proj": "high"}}}),
        json!({"train": {"schedule": "cosin"}}),
        json!({"train": {"adam_betas": [0.9]}}),
        json!({"lorra": {}}),
    ];
    assert!(check(&schema(&[]), &["", "models", "sandbox"], &wrong) >= 8);
    assert_eq!(schema(&["run"]), schema(&[]));
}

#[test]
fn the_shipped_suites_meet_their_schema() {
    let wrong = [
        json!({}),
        json!({"eval": [{"data": "a", "matric": "loss"}]}),
        json!({"eval": [{"data": "a", "metric": "los"}]}),
        json!({"eval": [{"data": "a", "limit": -1}]}),
    ];
    assert_eq!(check(&schema(&["suite"]), &["sandbox/suites"], &wrong), 4);
}

#[test]
fn the_shipped_comparisons_meet_their_schema() {
    let with = |method: Value| json!({"config": "c", "suite": "s", "dir": "d", "method": [method]});
    let wrong = [
        json!({"config": "c", "suite": "s", "dir": "d"}),
        with(json!({"nmae": "a"})),
        with(json!({"name": "a", "sweep": {"asft": {"lambda": 1}}})),
        with(json!({"name": "a", "sweep": {"asft.lambda": []}})),
        with(json!({"name": "a", "project": {"of": "b"}})),
    ];
    assert_eq!(check(&schema(&["compare"]), &["sandbox/comparisons"], &wrong), 17);
    refused(asft(&["schema", "sweet"]), &["sweet", "run, suite, compare"]);
}

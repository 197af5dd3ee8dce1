//! What the settings' JSON schema says of a key: whether it exists, and which values it takes.
//!
//! Only the part of JSON schema that `schemars` writes for the option structs is understood: objects with properties,
//! `$ref`, `anyOf`/`oneOf`, `const`/`enum`, and plain types.

use super::Settings;
use serde_json::{Map, Value as Json};
use toml::Value;

/// The settings' schema.
pub struct Schema {
    root: Json,
}

impl Schema {
    pub fn of_settings() -> Self {
        Self { root: schemars::schema_for!(Settings).to_value() }
    }

    pub fn into_json(self) -> Json {
        self.root
    }

    /// The words that a key takes, if it takes only some, with what each means.
    pub fn choices<'a>(&'a self, schema: &'a Json) -> Vec<(&'a str, String)> {
        let meaning = |schema: &Json| {
            let text = schema["description"].as_str().unwrap_or_default();
            text.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let of = |schema: &'a Json| constants(schema).into_iter().map(move |word| (word, meaning(schema)));
        self.alternatives(schema).into_iter().flat_map(of).collect()
    }

    /// The schema of a dotted key, or `None` if there is no such key.
    pub fn get(&self, path: &[String]) -> Option<&Json> {
        path.iter().try_fold(&self.root, |schema, name| match self.properties(schema) {
            Some(properties) => properties.get(name),
            None => self.any_key(schema),
        })
    }

    /// What every value of a table must meet whose keys are the user's own, or `None` where `schema` is another's.
    pub fn any_key<'a>(&'a self, schema: &'a Json) -> Option<&'a Json> {
        self.resolve(schema).get("additionalProperties").filter(|values| values.is_object())
    }

    /// The keys of a section, or `None` where `schema` is a value's.
    pub fn properties<'a>(&'a self, schema: &'a Json) -> Option<&'a Map<String, Json>> {
        self.resolve(schema).get("properties")?.as_object()
    }

    /// Every dotted key that holds a value, in the order of declaration.
    pub fn keys(&self) -> Vec<String> {
        let mut keys = vec![];
        self.collect_keys(&self.root, "", &mut keys);
        keys
    }

    /// The names of the sections.
    pub fn sections(&self) -> impl Iterator<Item = &str> {
        self.properties(&self.root).into_iter().flatten().map(|(name, _)| name.as_str())
    }

    fn collect_keys(&self, schema: &Json, prefix: &str, keys: &mut Vec<String>) {
        for (name, schema) in self.properties(schema).into_iter().flatten() {
            let key = format!("{prefix}{name}");
            match self.properties(schema) {
                Some(_) => self.collect_keys(schema, &format!("{key}."), keys),
                None => keys.push(key),
            }
        }
    }

    fn resolve<'a>(&'a self, schema: &'a Json) -> &'a Json {
        let Some(pointer) = schema["$ref"].as_str() else { return schema };
        self.root.pointer(pointer.trim_start_matches('#')).map_or(schema, |target| self.resolve(target))
    }

    /// The schemas of which a value has to meet one: a single one unless the schema is a union.
    fn alternatives<'a>(&'a self, schema: &'a Json) -> Vec<&'a Json> {
        let schema = self.resolve(schema);
        match schema["anyOf"].as_array().or_else(|| schema["oneOf"].as_array()) {
            Some(members) => members.iter().flat_map(|member| self.alternatives(member)).collect(),
            None => vec![schema],
        }
    }

    /// Whether `value` may stand where `schema` is asked for. Ranges are checked later, in `validate`.
    pub fn accepts(&self, schema: &Json, value: &Value) -> bool {
        self.alternatives(schema).into_iter().any(|schema| {
            let constants = constants(schema);
            if !constants.is_empty() {
                return value.as_str().is_some_and(|text| constants.contains(&text));
            }
            types(schema).into_iter().any(|kind| match (kind, value) {
                ("string", Value::String(_)) | ("boolean", Value::Boolean(_)) | ("object", Value::Table(_)) => true,
                ("number", Value::Integer(_) | Value::Float(_)) => true,
                // No option takes a negative whole number.
                ("integer", Value::Integer(number)) => *number >= 0,
                ("array", Value::Array(items)) => {
                    let length = schema["maxItems"].as_u64();
                    length.is_none_or(|length| items.len() as u64 == length)
                        && items.iter().all(|item| self.accepts(&schema["items"], item))
                }
                _ => false,
            })
        })
    }

    /// The first key of a table in the list `value` that the list's `schema` has none of, and those that it has.
    pub fn unknown_inside<'a>(
        &'a self,
        schema: &'a Json,
        value: &Value,
    ) -> Option<(String, impl Iterator<Item = &'a str>)> {
        let known = self.properties(self.resolve(schema).get("items")?)?;
        let mut keys = value.as_array()?.iter().filter_map(Value::as_table).flat_map(|table| table.keys());
        let unknown = keys.find(|key| !known.contains_key(*key))?;
        Some((unknown.clone(), known.keys().map(String::as_str)))
    }

    /// What `schema` asks for, in words.
    pub fn expected(&self, schema: &Json) -> String {
        let mut words: Vec<String> = vec![];
        for schema in self.alternatives(schema) {
            let constants = constants(schema);
            if !constants.is_empty() {
                words.extend(constants.iter().map(|text| format!("\"{text}\"")));
                continue;
            }
            words.extend(types(schema).into_iter().filter_map(|kind| match kind {
                "string" => Some("a string".to_string()),
                "boolean" => Some("true or false".to_string()),
                "number" => Some("a number".to_string()),
                "integer" => Some("a whole number of 0 or more".to_string()),
                "object" => Some("a table".to_string()),
                "array" => {
                    let length = schema["maxItems"].as_u64().map_or(String::new(), |length| format!("{length} "));
                    let item = self.expected(&schema["items"]);
                    let items = item.trim_start_matches("a ").replacen("number", "numbers", 1);
                    Some(format!("a list of {length}{}", items.replacen("string", "strings", 1)))
                }
                _ => None,
            }));
        }
        match words.split_last() {
            Some((last, [])) => last.clone(),
            Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
            None => "nothing".to_string(),
        }
    }
}

fn constants(schema: &Json) -> Vec<&str> {
    let listed = schema["enum"].as_array().into_iter().flatten();
    schema.get("const").into_iter().chain(listed).filter_map(Json::as_str).collect()
}

fn types(schema: &Json) -> Vec<&str> {
    match &schema["type"] {
        Json::String(kind) => vec![kind],
        Json::Array(kinds) => kinds.iter().filter_map(Json::as_str).collect(),
        _ => vec![],
    }
}

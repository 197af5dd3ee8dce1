//! What a type's JSON schema says about a key: whether it exists, and which values it takes.
//!
//! Only the part of JSON schema that `schemars` writes for the option structs is understood: objects with properties,
//! `$ref`, `anyOf`/`oneOf`, `const`/`enum`, plain types, and `true`.

use crate::error::nearest;
use schemars::JsonSchema;
use serde_json::{Map, Value as Json};
use toml::Value;

/// A type's schema. A *node* is the schema of a part of the type.
pub struct Schema {
    root: Json,
}

impl Schema {
    pub fn of<T: JsonSchema>() -> Self {
        Self { root: schemars::schema_for!(T).to_value() }
    }

    /// The schema as JSON (draft 2020-12), for editors and other tools.
    pub fn into_json(mut self, title: &str) -> Json {
        self.root["title"] = title.into();
        self.root
    }

    pub fn root(&self) -> &Json {
        &self.root
    }

    /// The words that a key takes, if only some are allowed, with what each means.
    pub fn choices<'a>(&'a self, node: &'a Json) -> Vec<(&'a str, String)> {
        let meaning = |node: &Json| {
            let text = node["description"].as_str().unwrap_or_default();
            text.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let of = |node: &'a Json| constants(node).into_iter().map(move |word| (word, meaning(node)));
        self.alternatives(node).into_iter().flat_map(of).collect()
    }

    /// The node of a dotted key, or `None` if there is no such key.
    pub fn get(&self, path: &[String]) -> Option<&Json> {
        self.find(&self.root, path)
    }

    /// As [`Schema::get`], for a key of `node`.
    pub(super) fn find<'a>(&'a self, node: &'a Json, path: &[String]) -> Option<&'a Json> {
        path.iter().try_fold(node, |node, name| match self.properties(node) {
            Some(properties) => properties.get(name),
            None => self.any_key(node),
        })
    }

    /// The node that every value must meet (`true`: any will do) in a table whose keys are the user's own; `None` if `node` is not such a
    /// table.
    pub(super) fn any_key<'a>(&'a self, node: &'a Json) -> Option<&'a Json> {
        let is_open = |values: &&Json| values.is_object() || **values == Json::Bool(true);
        let values = |node: &'a Json| node.get("additionalProperties").filter(is_open);
        self.alternatives(node).into_iter().find_map(values)
    }

    /// The keys of a section, or `None` if `node` is that of a value.
    pub fn properties<'a>(&'a self, node: &'a Json) -> Option<&'a Map<String, Json>> {
        let members = self.alternatives(node);
        // What may be something else than a table is a value.
        let is_section = |node: &&Json| node.get("properties").is_some() || node["type"] == "null";
        let node = self.table(node).filter(|_| members.iter().all(is_section))?;
        node["properties"].as_object()
    }

    /// The node of the table that `node` stands for, or may stand for.
    pub(super) fn table<'a>(&'a self, node: &'a Json) -> Option<&'a Json> {
        self.alternatives(node).into_iter().find(|node| node.get("properties").is_some())
    }

    /// The keys that a section must have.
    pub(super) fn required<'a>(&'a self, node: &'a Json) -> Vec<&'a str> {
        let names = self.alternatives(node).into_iter().find_map(|node| node.get("required")?.as_array());
        names.into_iter().flatten().filter_map(Json::as_str).collect()
    }

    /// The node of the tables in a list, or `None` if `node` is not a list that may hold tables.
    pub(super) fn item<'a>(&'a self, node: &'a Json) -> Option<&'a Json> {
        let item = self.alternatives(node).into_iter().find_map(|node| node.get("items"))?;
        self.table(item)
    }

    /// Every dotted key that holds a value, in the order of declaration.
    pub fn keys(&self) -> Vec<String> {
        self.keys_of(&self.root)
    }

    /// The names of the sections.
    pub fn sections(&self) -> impl Iterator<Item = &str> {
        self.names_of(&self.root)
    }

    pub(super) fn keys_of(&self, node: &Json) -> Vec<String> {
        let mut keys = vec![];
        self.collect_keys(node, "", &mut keys);
        keys
    }

    pub(super) fn names_of<'a>(&'a self, node: &'a Json) -> impl Iterator<Item = &'a str> {
        self.properties(node).into_iter().flatten().map(|(name, _)| name.as_str())
    }

    /// Which key of `node` an unknown one most likely means, as the end of a message; empty if none is similar.
    pub fn hint(&self, node: &Json, key: &str) -> String {
        self.nearest_key(node, key).map_or(String::new(), |near| format!("; did you mean `{near}`?"))
    }

    fn nearest_key(&self, node: &Json, key: &str) -> Option<String> {
        let keys = self.keys_of(node);
        let name_of = |key: &str| key.rsplit('.').next().unwrap_or_default().to_string();
        let sections: Vec<&str> = self.names_of(node).collect();
        // The right name in the wrong section, then a misspelling within the section, then anything similar.
        if let Some(same_name) = keys.iter().find(|known| name_of(known) == name_of(key)) {
            return Some(same_name.clone());
        }
        if let Some((section, name)) = key.split_once('.')
            && let Some(section) = sections.iter().find(|known| **known == section)
        {
            let prefix = format!("{section}.");
            let near = nearest(name, keys.iter().filter_map(|known| known.strip_prefix(&prefix)));
            if let Some(near) = near {
                return Some(format!("{prefix}{near}"));
            }
        }
        let known = keys.iter().map(String::as_str).chain(sections);
        nearest(key, known).map(str::to_string)
    }

    fn collect_keys(&self, node: &Json, prefix: &str, keys: &mut Vec<String>) {
        for (name, node) in self.properties(node).into_iter().flatten() {
            let key = format!("{prefix}{name}");
            match self.properties(node) {
                Some(_) => self.collect_keys(node, &format!("{key}."), keys),
                None => keys.push(key),
            }
        }
    }

    fn resolve<'a>(&'a self, node: &'a Json) -> &'a Json {
        let Some(pointer) = node["$ref"].as_str() else { return node };
        self.root.pointer(pointer.trim_start_matches('#')).map_or(node, |target| self.resolve(target))
    }

    /// The nodes of which a value must meet one: a single one unless `node` is a union.
    fn alternatives<'a>(&'a self, node: &'a Json) -> Vec<&'a Json> {
        let node = self.resolve(node);
        match node["anyOf"].as_array().or_else(|| node["oneOf"].as_array()) {
            Some(members) => members.iter().flat_map(|member| self.alternatives(member)).collect(),
            None => vec![node],
        }
    }

    /// Whether `value` fits `node`. Keys within it, and ranges, are checked elsewhere.
    pub fn accepts(&self, node: &Json, value: &Value) -> bool {
        self.alternatives(node).into_iter().any(|node| {
            let constants = constants(node);
            if !constants.is_empty() {
                return value.as_str().is_some_and(|text| constants.contains(&text) || is_older(node, text));
            }
            *node == Json::Bool(true)
                || types(node).into_iter().any(|kind| match (kind, value) {
                    ("string", Value::String(_)) | ("boolean", Value::Boolean(_)) | ("object", Value::Table(_)) => true,
                    ("number", Value::Integer(_) | Value::Float(_)) => true,
                    // No option takes a negative integer.
                    ("integer", Value::Integer(number)) => *number >= 0,
                    ("array", Value::Array(items)) => {
                        let length = node["maxItems"].as_u64();
                        length.is_none_or(|length| items.len() as u64 == length)
                            && items.iter().all(|item| self.accepts(&node["items"], item))
                    }
                    _ => false,
                })
        })
    }

    /// What a word is called now, if it is the older name of one that `node` takes: `x-older` of a variant's schema lists these, and
    /// serde's `alias` reads them.
    pub(super) fn renamed<'a>(&'a self, node: &'a Json, word: &str) -> Option<&'a str> {
        self.alternatives(node).into_iter().find(|node| is_older(node, word))?.get("const")?.as_str()
    }

    /// What `node` expects, in words.
    pub fn expected(&self, node: &Json) -> String {
        let mut words: Vec<String> = vec![];
        for node in self.alternatives(node) {
            let constants = constants(node);
            if !constants.is_empty() {
                words.extend(constants.iter().map(|text| format!("\"{text}\"")));
                continue;
            }
            if *node == Json::Bool(true) {
                words.push("a value".to_string());
            }
            words.extend(types(node).into_iter().filter_map(|kind| match kind {
                "string" => Some("a string".to_string()),
                "boolean" => Some("true or false".to_string()),
                "number" => Some("a number".to_string()),
                "integer" => Some("a whole number of 0 or more".to_string()),
                "object" => Some("a table".to_string()),
                "array" => {
                    let length = node["maxItems"].as_u64().map_or(String::new(), |length| format!("{length} "));
                    let item = self.expected(&node["items"]);
                    let item = item.trim_start_matches("a ").replace(" a ", " ");
                    let items = ["number", "string", "table", "value"]
                        .iter()
                        .fold(item, |text, word| text.replacen(word, &format!("{word}s"), 1));
                    Some(format!("a list of {length}{items}"))
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

fn is_older(node: &Json, word: &str) -> bool {
    node["x-older"].as_array().is_some_and(|older| older.iter().any(|older| older == word))
}

fn constants(node: &Json) -> Vec<&str> {
    let listed = node["enum"].as_array().into_iter().flatten();
    node.get("const").into_iter().chain(listed).filter_map(Json::as_str).collect()
}

fn types(node: &Json) -> Vec<&str> {
    match &node["type"] {
        Json::String(kind) => vec![kind],
        Json::Array(kinds) => kinds.iter().filter_map(Json::as_str).collect(),
        _ => vec![],
    }
}

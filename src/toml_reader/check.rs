//! What is wrong with a user's values, according to the schema that they must meet.

use super::entries::{Entry, Source, entries};
use super::schema::Schema;
use crate::error::nearest;
use serde_json::Value as Json;
use toml::{Table, Value};

/// A mistake, and its byte offset in the file.
pub struct Found {
    pub offset: usize,
    pub mistake: String,
}

/// Checks values that were given in one place.
pub struct Check<'a> {
    pub schema: &'a Schema,
    /// What the keys are keys of.
    pub node: &'a Json,
    pub source: Source<'a>,
    /// For messages: the list of which the table is an item, if it is one.
    pub within: String,
}

impl Check<'_> {
    /// Unknown keys, values of a wrong type, and the same in lists of tables.
    pub fn entry(&self, entry: &Entry) -> Vec<Found> {
        let Self { schema, node, within, .. } = self;
        let (key, place) = (entry.path.join("."), &entry.place.text);
        let found = |mistake| vec![Found { offset: entry.place.offset, mistake }];
        let Some(wanted) = schema.find(node, &entry.path) else {
            return found(format!("unknown key `{key}`{within} in {place}{}", schema.hint(node, &key)));
        };
        if !schema.accepts(wanted, &entry.value) {
            let (expected, value) = (schema.expected(wanted), &entry.value);
            let words = schema.choices(wanted);
            // Where there is a choice of words, another word is no matter of types.
            let wrong = match value.as_str().filter(|_| !words.is_empty()) {
                Some(word) => {
                    let near = nearest(word, words.iter().map(|(word, _)| *word));
                    let hint = near.map_or(String::new(), |near| format!("; did you mean \"{near}\"?"));
                    ("wrong value for", format!("expected {expected}, found {value}{hint}"))
                }
                None => ("wrong type for", format!("expected {expected}, found {} {value}", value.type_str())),
            };
            return found(format!("{} `{key}`{within} in {place}: {}", wrong.0, wrong.1));
        }
        // Only where a key takes other values too; the tables of all others are split into their keys.
        if let (Some(node), Some(table)) = (schema.table(wanted), entry.value.as_table()) {
            let within = format!(" in `{key}`{within}");
            return Check { schema, node, source: self.source.table(&entry.path), within }.table(table);
        }
        let (Some(node), Some(items)) = (schema.item(wanted), entry.value.as_array()) else { return vec![] };
        let within = format!(" in an item of `{key}`{within}");
        let item = |(i, item): (usize, &Value)| {
            let check = Check { schema, node, source: self.source.item(&entry.path, i), within: within.clone() };
            item.as_table().map_or(vec![], |table| check.table(table))
        };
        items.iter().enumerate().flat_map(item).collect()
    }

    /// As [`Check::entry`] for each key of a table, and the keys that it lacks.
    pub fn table(&self, table: &Table) -> Vec<Found> {
        let given = entries(self.schema, self.node, vec![], Value::Table(table.clone()), &self.source);
        let wrong = given.iter().flat_map(|entry| self.entry(entry));
        wrong.chain(self.missing(&[], table)).collect()
    }

    /// The keys that the section at `path`, and those in it, must have but lack.
    pub fn missing(&self, path: &[String], table: &Table) -> Vec<Found> {
        let Some(node) = self.schema.find(self.node, path) else { return vec![] };
        let key = |name: &str| [path, &[name.to_string()]].concat();
        let lacking = self.schema.required(node).into_iter().filter(|name| !table.contains_key(*name)).map(|name| {
            let (key, place) = (key(name).join("."), self.source.place(path));
            Found { offset: place.offset, mistake: format!("missing key `{key}`{} in {}", self.within, place.text) }
        });
        let inner = table.iter().filter_map(|(name, value)| Some((name, value.as_table()?)));
        lacking.chain(inner.flat_map(|(name, table)| self.missing(&key(name), table))).collect()
    }
}

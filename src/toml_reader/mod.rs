//! Reads the TOML that users write (a run's settings, suites of evaluations, comparisons) into serde types.
//!
//! Everything that is wrong is reported in one message: unknown keys, each with the nearest known one, values of a
//! wrong type, words that a key does not allow, missing keys; all with their lines. The type's JSON schema says what is
//! known. Checks that no type can express are up to the caller.

mod check;
mod entries;
mod mistakes;
mod schema;
#[cfg(test)]
mod tests;

pub use mistakes::Mistakes;
pub use schema::Schema;

use crate::console::log;
use crate::error::path_hint;
use crate::invalid;
use anyhow::Result;
use check::Check;
use entries::{Entry, Source, assemble, entries, line};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::marker::PhantomData;
use std::path::Path;
use toml::de::DeTable;
use toml::{Table, Value};

/// Reads a file. `what`: its kind, for messages, such as "suite".
///
/// # Errors
/// A file that cannot be read or is not TOML; otherwise everything in it that does not fit `T`, in one message.
pub fn load<T: DeserializeOwned + JsonSchema>(path: &Path, what: &str) -> Result<T> {
    let text = text_of(path, what)?;
    Document::parse(&text, &path.display().to_string())?.read(what, Mistakes::default())
}

/// The text of a file.
pub fn text_of(path: &Path, what: &str) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| invalid!("cannot read {what} {}: {e}{}", path.display(), path_hint(path)))
}

/// The values of a file meant to be a `T`, those set on top of it, and all that is wrong with them.
pub struct Document<T> {
    schema: Schema,
    origin: String,
    entries: Vec<Entry>,
    mistakes: Mistakes,
    kind: PhantomData<T>,
}

impl<T: DeserializeOwned + JsonSchema> Document<T> {
    /// Parses a file; `origin` names it in messages.
    ///
    /// # Errors
    /// Text that is not TOML.
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        let schema = Schema::of::<T>();
        let not_toml = |e: toml::de::Error| {
            let line = e.span().map_or(1, |span| line(text, span.start));
            invalid!("{origin}:{line} is not valid TOML: {}", e.message())
        };
        let table: Table = text.parse().map_err(not_toml)?;
        let spans = DeTable::parse(text).map_err(not_toml)?;
        let source = Source::file(text, origin, spans.get_ref());
        let check = Check { schema: &schema, node: schema.root(), source, within: String::new() };
        let mut found = check.missing(&[], &table);
        let mut entries = entries(&schema, schema.root(), vec![], Value::Table(table), &source);
        entries.sort_by_key(|entry| entry.place.offset);
        found.extend(entries.iter().flat_map(|entry| check.entry(entry)));
        found.sort_by_key(|found| found.offset);
        let mut mistakes = Mistakes::default();
        mistakes.extend(found.into_iter().map(|found| found.mistake));
        Ok(Self { mistakes, schema, origin: origin.to_string(), entries, kind: PhantomData })
    }

    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Sets the key, section or table at `path`, whatever the file says; `place` is where that was asked for.
    pub fn set(&mut self, path: Vec<String>, value: Value, place: &str) {
        let (schema, source) = (&self.schema, Source::option(place));
        let check = Check { schema, node: schema.root(), source, within: String::new() };
        let entries = entries(schema, schema.root(), path, value, &source);
        self.mistakes.extend(entries.iter().flat_map(|entry| check.entry(entry)).map(|found| found.mistake));
        self.entries.extend(entries);
    }

    /// Warns of words that have other names now.
    fn tell_older(&self) {
        for Entry { path, value, place } in &self.entries {
            let now =
                self.schema.get(path).zip(value.as_str()).and_then(|(node, word)| self.schema.renamed(node, word));
            if let Some(now) = now {
                let key = path.join(".");
                log::warn(
                    &format!("{}: {key} = {value} is called \"{now}\" now", place.text),
                    json!({"key": key, "now": now}),
                );
            }
        }
    }

    /// The complete value. `what`: its kind, for messages.
    ///
    /// # Errors
    /// Everything that does not fit `T`, after `earlier` mistakes.
    pub fn read(self, what: &str, mut earlier: Mistakes) -> Result<T> {
        earlier.extend(self.mistakes.lines().iter().cloned());
        earlier.refuse(&format!("the {what} cannot be read"))?;
        self.tell_older();
        T::deserialize(Value::Table(assemble(self.entries)))
            .map_err(|e| invalid!("{}: {}", self.origin, e.to_string().trim_end()))
    }
}

/// Dotted keys and values; tables inside are keys too, so that `a.b = 1` and `"a.b" = 1` are the same.
pub fn flatten(table: &Table) -> Vec<(String, Value)> {
    let mut entries = vec![];
    for (key, value) in table {
        match value {
            Value::Table(inner) => {
                entries.extend(flatten(inner).into_iter().map(|(rest, value)| (format!("{key}.{rest}"), value)));
            }
            value => entries.push((key.clone(), value.clone())),
        }
    }
    entries
}

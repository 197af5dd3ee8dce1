//! TOML as entries: dotted keys with their values, and where each was given.

use super::schema::Schema;
use serde_json::Value as Json;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

/// One value given by the user, and where. A list is one value, including tables in it.
pub struct Entry {
    pub path: Vec<String>,
    pub value: Value,
    pub place: Place,
}

/// Where something was given.
pub struct Place {
    /// Byte offset in the file.
    pub offset: usize,
    /// `FILE:LINE`, only the file for what concerns all of it, or the option on the command line.
    pub text: String,
}

/// Where the values of a table were given.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The file's name, or the option on the command line as typed.
    origin: &'a str,
    within: Option<Within<'a>>,
}

/// A table in a file's text.
#[derive(Clone, Copy)]
struct Within<'a> {
    text: &'a str,
    table: &'a DeTable<'a>,
    /// Where it begins, unless it is the whole file.
    start: Option<usize>,
}

impl<'a> Source<'a> {
    pub fn file(text: &'a str, origin: &'a str, table: &'a DeTable<'a>) -> Self {
        Self { origin, within: Some(Within { text, table, start: None }) }
    }

    pub fn option(origin: &'a str) -> Self {
        Self { origin, within: None }
    }

    /// Where the key at `path` was given; an empty path stands for the table itself.
    pub fn place(&self, path: &[String]) -> Place {
        let offset = self.within.and_then(|within| match path {
            [] => within.start,
            _ => find(within.table, path).map(|(offset, _)| offset),
        });
        match (self.within, offset) {
            (Some(within), Some(offset)) => {
                Place { offset, text: format!("{}:{}", self.origin, line(within.text, offset)) }
            }
            _ => Place { offset: 0, text: self.origin.to_string() },
        }
    }

    /// The table at `path`.
    pub fn table(&self, path: &[String]) -> Self {
        let within = self.within.map(|within| {
            let found = find(within.table, path).and_then(|(start, table)| Some((start, table.get_ref().as_table()?)));
            found.map_or(within, |(start, table)| Within { table, start: Some(start), ..within })
        });
        Self { within, ..*self }
    }

    /// The table that is item `index` of the list at `path`.
    pub fn item(&self, path: &[String], index: usize) -> Self {
        let within = self.within.map(|within| {
            let item = find(within.table, path).and_then(|(_, list)| list.get_ref().get(index));
            let table = item.and_then(|item| Some((item.get_ref().as_table()?, item.span().start)));
            table.map_or(within, |(table, start)| Within { table, start: Some(start), ..within })
        });
        Self { within, ..*self }
    }
}

/// The line of a place in a text, from 1.
pub fn line(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// Where the key at `path` begins, and its value. For a path that leads into a value, those of the value.
fn find<'a>(table: &'a DeTable<'a>, path: &[String]) -> Option<(usize, &'a Spanned<DeValue<'a>>)> {
    let (name, rest) = path.split_first()?;
    let (key, value) = table.get_key_value(name.as_str())?;
    match value.get_ref().as_table() {
        Some(inner) if !rest.is_empty() => find(inner, rest),
        _ => Some((key.span().start, value)),
    }
}

/// The entries of a value at `path` from `node`: sections, and tables with keys of the user's own, are split into their
/// keys; anything else stays whole.
pub fn entries(schema: &Schema, node: &Json, path: Vec<String>, value: Value, source: &Source) -> Vec<Entry> {
    let found = schema.find(node, &path);
    let is_section = found.is_some_and(|found| schema.properties(found).is_some() || schema.any_key(found).is_some());
    match value {
        Value::Table(table) if is_section => {
            let inner = |(name, value)| entries(schema, node, [path.clone(), vec![name]].concat(), value, source);
            table.into_iter().flat_map(inner).collect()
        }
        value => vec![Entry { place: source.place(&path), path, value }],
    }
}

/// Assembles entries into one table; a later entry for a key replaces an earlier one.
pub fn assemble(entries: Vec<Entry>) -> Table {
    let mut root = Table::new();
    for Entry { mut path, value, .. } in entries {
        let name = path.pop().expect("the root is a section and is never an entry");
        let mut table = &mut root;
        for section in path {
            let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            table = inner.as_table_mut().expect("a known key's parents are sections");
        }
        table.insert(name, value);
    }
    root
}

//! A config file and `--set` overrides as entries: dotted keys with their values, and where each was given.

use super::schema::Schema;
use crate::invalid;
use anyhow::Result;
use toml::de::DeTable;
use toml::{Table, Value};

/// One value given by the user, and where.
pub struct Entry {
    pub path: Vec<String>,
    pub value: Value,
    /// `FILE:LINE` or `--set`.
    pub place: String,
}

pub fn file_entries(schema: &Schema, text: &str, origin: &str) -> Result<Vec<Entry>> {
    let line = |offset: usize| text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1;
    let not_toml = |e: toml::de::Error| {
        let line = e.span().map_or(1, |span| line(span.start));
        invalid!("{origin}:{line} is not valid TOML: {}", e.message())
    };
    let table: Table = text.parse().map_err(not_toml)?;
    let spans = DeTable::parse(text).map_err(not_toml)?;
    let mut entries = vec![];
    flatten(schema, vec![], Value::Table(table), &mut entries, &|path| {
        format!("{origin}:{}", line(offset(spans.get_ref(), path).unwrap_or(0)))
    });
    entries.sort_by_key(|entry| offset(spans.get_ref(), &entry.path));
    Ok(entries)
}

/// Where the key at `path` begins.
fn offset(table: &DeTable, path: &[String]) -> Option<usize> {
    let (name, rest) = path.split_first()?;
    let (key, value) = table.get_key_value(name.as_str())?;
    match value.get_ref().as_table() {
        Some(inner) if !rest.is_empty() => offset(inner, rest),
        _ => Some(key.span().start),
    }
}

/// Splits sections, and tables of the user's own keys, into their keys; anything else stays whole.
fn flatten(
    schema: &Schema,
    path: Vec<String>,
    value: Value,
    entries: &mut Vec<Entry>,
    place: &dyn Fn(&[String]) -> String,
) {
    let found = schema.get(&path);
    let is_section = found.is_some_and(|found| schema.properties(found).is_some() || schema.any_key(found).is_some());
    match value {
        Value::Table(table) if is_section => {
            for (name, value) in table {
                flatten(schema, [path.clone(), vec![name]].concat(), value, entries, place);
            }
        }
        value => entries.push(Entry { place: place(&path), path, value }),
    }
}

/// The entries of one `key=value`. The value is TOML; a bare word that is not is taken as a string.
pub fn override_entries(schema: &Schema, text: &str) -> std::result::Result<Vec<Entry>, String> {
    let Some((key, given)) = text.split_once('=') else {
        return Err(format!("--set {text}: expected key=value, for example --set asft.lambda=0.1"));
    };
    let (key, given) = (key.trim(), given.trim());
    let Some(path) = key_path(key) else {
        return Err(format!("--set {text}: `{key}` is not a key, for example asft.lambda"));
    };
    let word = Value::String(given.to_string());
    let value = match given.parse::<Value>() {
        // `--set output.dir=2026`: a number where only a string will do is a word that looks like a number.
        Ok(value) => match schema.get(&path) {
            Some(wanted) if !schema.accepts(wanted, &value) && schema.accepts(wanted, &word) => word,
            _ => value,
        },
        // A list whose quotes the shell has eaten must not become a string.
        Err(_) if given.starts_with(['[', '{', '"', '\'']) => {
            return Err(format!(
                "--set {text}: the value is not valid TOML; quote it for the shell, as in \
                 --set 'lora.target_modules=[\"q_proj\"]'"
            ));
        }
        Err(_) => word,
    };
    let mut entries = vec![];
    flatten(schema, path, value, &mut entries, &|_| format!("--set {text}"));
    Ok(entries)
}

/// The parts of a dotted key, which may be quoted as in TOML: `lora.rank_pattern."layers.0.self_attn.q_proj"`.
fn key_path(key: &str) -> Option<Vec<String>> {
    let mut path = vec![];
    let mut value = match format!("{key} = 0").parse::<Table>() {
        Ok(table) => Value::Table(table),
        // A key of bare words is taken as it is, to be compared with those that there are.
        Err(_) => return (!key.contains('"')).then(|| key.split('.').map(|part| part.trim().to_string()).collect()),
    };
    while let Value::Table(table) = value {
        let (name, inner) = table.into_iter().next()?;
        path.push(name);
        value = inner;
    }
    Some(path)
}

/// Entries to one table; a later entry for a key replaces an earlier one.
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

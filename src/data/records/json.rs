//! JSON arrays and JSONL.

use super::big;
use super::record::{Place, Record, kind};
use super::watched::{Watched, WatchedList};
use crate::data::BadRecords;
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use serde::de::DeserializeSeed;
use serde_json::{Deserializer, Error, Value};
use std::path::Path;

const WHAT_IS_READ: &str = "a dataset is JSONL (one object a line), one JSON array of objects, or a file whose name \
                            ends in .csv, .tsv or .parquet";

/// A value and the path of a key that occurs twice in one of its objects, if any does.
type Parsed = (Value, Option<String>);

/// The records in `text`; `path` names the file in messages.
///
/// # Errors
/// Malformed JSON (with its line); a record that is not an object, or holds a key twice.
pub fn read(path: &Path, text: &str) -> Result<Vec<Record>> {
    let (mut records, mut bad) = (vec![], BadRecords::default());
    let mut keep = |place: Place, parsed: Result<Parsed>| match parsed.and_then(|parsed| record(parsed, place)) {
        Ok(record) => {
            records.push(record);
            Ok(())
        }
        Err(error) => bad.note(path, place, error),
    };
    let mut count = 0;
    let mut hint = None;
    if text.trim_start().starts_with('[') {
        let text = big::marked(text).with_context(|| path.display().to_string())?;
        let values = read_array(&text);
        let values = values.map_err(|e| invalid!("{}:{}: malformed JSON: {e}", path.display(), e.line()))?;
        count = values.len();
        for (index, parsed) in values.into_iter().enumerate() {
            keep(Place::Item(index + 1), Ok(parsed))?;
        }
    } else {
        // Only \n ends a line: JSON strings may hold U+2028 and other separators unescaped.
        for (index, line) in text.split('\n').enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let parsed = big::marked(line).and_then(|line| {
                read_one(&line).map_err(|e| {
                    hint = Some(WHAT_IS_READ);
                    invalid!("malformed JSON at column {}: {}", e.column(), reason(&e))
                })
            });
            keep(Place::Line(index + 1), parsed)?;
            count += 1;
        }
    }
    if let Some(hint) = hint {
        bad.hint(hint);
    }
    bad.refuse(path, count, count)?;
    Ok(records)
}

/// JSON in a field of a record.
///
/// # Errors
/// Malformed JSON; a key that occurs twice.
pub fn parse(text: &str) -> Result<Value> {
    let (value, twice) = read_one(&big::marked(text)?).map_err(|e| invalid!("{e}"))?;
    refuse_twice(twice)?;
    Ok(value)
}

fn read_one(text: &str) -> Result<Parsed, Error> {
    let mut deserializer = Deserializer::from_str(text);
    let mut twice = None;
    let value = Watched { twice: &mut twice }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok((value, twice))
}

fn read_array(text: &str) -> Result<Vec<Parsed>, Error> {
    let mut deserializer = Deserializer::from_str(text);
    let values = WatchedList.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(values)
}

/// serde_json's message without its own line number, which counts from the line's beginning.
fn reason(error: &Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().to_lowercase()
}

fn record((value, twice): Parsed, place: Place) -> Result<Record> {
    refuse_twice(twice)?;
    match value {
        Value::Object(fields) => Ok(Record { fields, place }),
        other => Err(invalid!("expected a JSON object, got {}", kind(&other))),
    }
}

fn refuse_twice(twice: Option<String>) -> Result<()> {
    ensure_valid!(
        twice.is_none(),
        "key `{}` occurs twice in the same object, and only one of the two can count; remove the other",
        twice.unwrap_or_default()
    );
    Ok(())
}

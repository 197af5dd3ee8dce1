//! JSON arrays and JSONL.

use super::record::{Place, Record, kind};
use crate::invalid;
use anyhow::Result;
use serde_json::Value;
use std::path::Path;

/// The records in `text`; `path` names the file in messages.
///
/// # Errors
/// Malformed JSON (with its line); a record that is not an object.
pub fn read(path: &Path, text: &str) -> Result<Vec<Record>> {
    if text.trim_start().starts_with('[') { read_array(path, text) } else { read_lines(path, text) }
}

fn read_array(path: &Path, text: &str) -> Result<Vec<Record>> {
    let values: Vec<Value> =
        serde_json::from_str(text).map_err(|e| invalid!("{}:{}: malformed JSON: {e}", path.display(), e.line()))?;
    values.into_iter().enumerate().map(|(index, value)| record(path, value, Place::Item(index + 1))).collect()
}

fn read_lines(path: &Path, text: &str) -> Result<Vec<Record>> {
    let mut records = vec![];
    // Only \n ends a line: JSON strings may hold U+2028 and other separators unescaped.
    for (index, line) in text.split('\n').enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let value = serde_json::from_str(line).map_err(|e| {
            invalid!(
                "{}:{}: malformed JSON at column {}: {}; a dataset is JSONL (one object a line), one JSON array of \
                 objects, or a file whose name ends in .csv, .tsv or .parquet",
                path.display(),
                index + 1,
                e.column(),
                reason(&e)
            )
        })?;
        records.push(record(path, value, Place::Line(index + 1))?);
    }
    Ok(records)
}

/// serde_json's message without its own line number, which counts from the line's beginning.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().to_lowercase()
}

fn record(path: &Path, value: Value, place: Place) -> Result<Record> {
    match value {
        Value::Object(fields) => Ok(Record { fields, place }),
        other => Err(invalid!("{}{place}: expected a JSON object, got {}", path.display(), kind(&other))),
    }
}

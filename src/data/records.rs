//! Records of a dataset file, each with its place.
//!
//! The file's name says what it is: `.csv` and `.tsv` are tables with a header (csv.rs), `.parquet`, or any file that
//! begins like Parquet, is Parquet (parquet.rs); anything else is JSON: an array of objects if its first character is
//! `[`, JSONL (one object per line) if not (json.rs). Text is UTF-8, with or without a byte order mark.

mod csv;
mod json;
mod parquet;

use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde_json::{Map, Value};
use std::fmt;
use std::io::Read;
use std::path::Path;

/// Where in its file a record is, counting from 1. Displays as what follows the file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Line of a JSONL or CSV file, the record's first.
    Line(usize),
    /// Element of a JSON array.
    Item(usize),
    /// Row of a Parquet file.
    Row(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, ":{line}"),
            Self::Item(item) => write!(f, ", record {item}"),
            Self::Row(row) => write!(f, ", row {row}"),
        }
    }
}

/// One object or row of a dataset, by its own column names.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub fields: Map<String, Value>,
    pub place: Place,
}

/// What a JSON value is, for messages.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Reads every record of `path`, in file order.
///
/// # Errors
/// A missing, unreadable or empty file; text that is not UTF-8; malformed JSON, a ragged table row (with its line),
/// a damaged Parquet file; a record that is not an object.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    ensure_valid!(path.is_file(), "dataset {} does not exist (or is not a file)", path.display());
    let extension = path.extension().map(|name| name.to_string_lossy().to_ascii_lowercase());
    let records = match extension.as_deref() {
        Some("parquet") => parquet::read(path)?,
        Some("csv") => csv::read(path, &read_text(path)?, b',')?,
        Some("tsv") => csv::read(path, &read_text(path)?, b'\t')?,
        _ if begins_like_parquet(path) => parquet::read(path)?,
        _ => json::read(path, &read_text(path)?)?,
    };
    ensure_valid!(!records.is_empty(), "dataset {} is empty: expected at least one record", path.display());
    Ok(records)
}

fn begins_like_parquet(path: &Path) -> bool {
    let mut head = [0; parquet::MAGIC.len()];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok_and(|()| head == *parquet::MAGIC)
}

/// The file's text without a byte order mark.
fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| invalid!("cannot read dataset {}: {e}", path.display()))?;
    let mut text = String::from_utf8(bytes).map_err(|e| {
        let valid = e.utf8_error().valid_up_to();
        let line = e.as_bytes().iter().take(valid).filter(|&&byte| byte == b'\n').count() + 1;
        invalid!("{}:{line}: not UTF-8 (at byte {valid}); convert the file to UTF-8", path.display())
    })?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
}

#[cfg(test)]
mod tests;

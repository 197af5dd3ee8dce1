//! Records of a dataset file, each with the place it stands at.
//!
//! A file whose first character is `[` is a JSON array of objects; anything else is JSONL, one object a line, empty
//! lines skipped. UTF-8, with or without byte order mark.

use crate::error::listing;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde_json::{Map, Value};
use std::fmt;
use std::path::Path;

/// Where in its file a record stands, counting from 1. Displays as what follows the file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Line of a JSONL file.
    Line(usize),
    /// Element of a JSON array.
    Item(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, ":{line}"),
            Self::Item(item) => write!(f, ", record {item}"),
        }
    }
}

/// One JSON object of a dataset.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub fields: Map<String, Value>,
    pub place: Place,
}

impl Record {
    /// The string in field `name`.
    ///
    /// # Errors
    /// The field is missing (the fields found are named) or not a string.
    pub fn text(&self, name: &str) -> Result<&str> {
        self.optional_text(name)?.ok_or_else(|| self.missing(name, "a string"))
    }

    /// The string in field `name`; `None` if the field is missing or null.
    ///
    /// # Errors
    /// The field holds something else.
    pub fn optional_text(&self, name: &str) -> Result<Option<&str>> {
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(invalid!("field `{name}` is {}, expected a string", kind(other))),
        }
    }

    /// The list in field `name`.
    ///
    /// # Errors
    /// The field is missing (the fields found are named) or not a list.
    pub fn list(&self, name: &str) -> Result<&[Value]> {
        match self.fields.get(name) {
            None | Some(Value::Null) => Err(self.missing(name, "a list")),
            Some(Value::Array(list)) => Ok(list),
            Some(other) => Err(invalid!("field `{name}` is {}, expected a list", kind(other))),
        }
    }

    fn missing(&self, name: &str, expected: &str) -> anyhow::Error {
        let state = if self.fields.contains_key(name) { "null" } else { "missing" };
        let found: Vec<&String> = self.fields.keys().collect();
        let found = if found.is_empty() { "none".to_string() } else { listing(&found, 12) };
        invalid!(
            "field `{name}` is {state}, expected {expected}; fields found: {found}; check `data.format`, which says \
             what a record holds"
        )
    }
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
/// A missing, unreadable or empty file; text that is not UTF-8; malformed JSON (with its line); a record that is not
/// an object.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    ensure_valid!(path.is_file(), "dataset {} does not exist (or is not a file)", path.display());
    let bytes = std::fs::read(path).map_err(|e| invalid!("cannot read dataset {}: {e}", path.display()))?;
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        let line = bytes[..e.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count() + 1;
        invalid!("{}:{line}: not UTF-8 (at byte {}); convert the file to UTF-8", path.display(), e.valid_up_to())
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let records = if text.trim_start().starts_with('[') { read_array(path, text)? } else { read_lines(path, text)? };
    ensure_valid!(!records.is_empty(), "dataset {} is empty: expected at least one record", path.display());
    Ok(records)
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
                "{}:{}: malformed JSON at column {}: {}; a dataset is JSONL (one object a line) or one JSON array of \
                 objects",
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read_bytes(bytes: &[u8]) -> Result<Vec<Record>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.json");
        std::fs::write(&path, bytes).unwrap();
        read(&path)
    }

    fn message(bytes: &[u8]) -> String {
        let error = read_bytes(bytes).unwrap_err();
        assert_eq!(crate::error::exit_code(&error), 2);
        error.to_string()
    }

    #[test]
    fn lines_and_arrays() {
        let records = read_bytes(b"\xef\xbb\xbf\n{\"a\": \"x\"}\r\n  \n{\"a\": null}").unwrap();
        assert_eq!(records.iter().map(|r| r.place).collect::<Vec<_>>(), [Place::Line(2), Place::Line(4)]);
        let records = read_bytes(b" \n[{\"a\": \"x\"},\n {}]").unwrap();
        assert_eq!(records[1].place, Place::Item(2));
        assert_eq!(records[0].text("a").unwrap(), "x");
    }

    #[test]
    fn bad_files_name_their_line() {
        assert!(message(b"{\"a\": 1}\n\n{\"a\": \n").contains("data.json:3: malformed JSON at column"));
        assert!(message(b"[{\"a\": 1},\n{\"a\" 1}]").contains("data.json:2: malformed JSON"));
        assert!(message(b"{\"a\": 1}\n7\n").contains("data.json:2: expected a JSON object, got a number"));
        assert!(message(b"[{}, \"x\"]").contains("record 2: expected a JSON object, got a string"));
        assert!(message(b"{\"a\": 1}\n{\"a\": \"\xff\"}").contains("data.json:2: not UTF-8"));
        for empty in [&b""[..], b"\n \n", b"[]"] {
            assert!(message(empty).contains("is empty"));
        }
        assert!(read(Path::new("/no/such/file")).unwrap_err().to_string().contains("does not exist"));
    }

    #[test]
    fn fields_are_named() {
        let records = read_bytes(b"{\"prompt\": 3, \"answer\": null}").unwrap();
        let error = |name| records[0].text(name).unwrap_err().to_string();
        assert!(error("output").contains("`output` is missing, expected a string; fields found: prompt, answer"));
        assert!(error("prompt").contains("`prompt` is a number, expected a string"));
        assert!(error("answer").contains("`answer` is null"));
        assert!(records[0].list("prompt").unwrap_err().to_string().contains("expected a list"));
    }
}

//! A record and its place, whatever the file's format.

use super::big;
use anyhow::Error;
use serde_json::{Map, Value};
use std::fmt;
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

impl Place {
    /// The line, element or row, counting from 1.
    pub fn number(self) -> usize {
        let (Self::Line(number) | Self::Item(number) | Self::Row(number)) = self;
        number
    }

    /// What [`Self::number`] counts.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Line(_) => "line",
            Self::Item(_) => "record",
            Self::Row(_) => "row",
        }
    }
}

/// One object or row of a dataset, by its own column names.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub fields: Map<String, Value>,
    pub place: Place,
}

/// Why a record cannot be used, and what helps, if anything does.
pub struct Unusable {
    pub place: Place,
    pub error: Error,
    pub hint: Option<&'static str>,
}

impl Unusable {
    /// The error, with the record's place in the file at `path`.
    pub fn at(self, path: &Path) -> Error {
        self.error.context(format!("{}{}", path.display(), self.place))
    }
}

/// What a JSON value is, for messages.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) if big::is_text(value) => "a string",
        Value::String(_) => "a number",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

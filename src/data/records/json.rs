//! JSON arrays and JSONL.

use super::big;
use super::record::{Place, Unusable, kind};
use super::text::{Piece, Text};
use super::watched::Watched;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde::de::DeserializeSeed;
use serde_json::{Deserializer, Error, Map, Value};

const WHAT_IS_READ: &str = "a dataset is JSONL (one object a line), one JSON array of objects, or a file whose name \
                            ends in .csv, .tsv or .parquet";

/// A value and the path of a key that occurs twice in one of its objects, if any does.
type Parsed = (Value, Option<String>);

/// The records of a text, unread: lines of JSONL, or elements of an array.
pub fn records(text: Text) -> Box<dyn Iterator<Item = Result<(Place, Piece)>>> {
    if text.is_array() { Box::new(Elements { text, count: 0, is_over: false }) } else { Box::new(Lines(text)) }
}

struct Lines(Text);

impl Iterator for Lines {
    type Item = Result<(Place, Piece)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.0.line() {
                Ok(Some(piece)) if piece.text.trim().is_empty() => {}
                Ok(piece) => return piece.map(|piece| Ok((Place::Line(piece.line), piece))),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

struct Elements {
    text: Text,
    /// Elements given out.
    count: usize,
    is_over: bool,
}

impl Elements {
    /// # Errors
    /// What stands between the elements, or after the array, is not JSON.
    fn following(&mut self) -> Result<Option<(Place, Piece)>> {
        let text = &mut self.text;
        // The bracket that opens the array, or what ended the element before.
        let before = text.peek_word()?;
        text.skip(1);
        let next = text.peek_word()?;
        let is_empty = before == Some(b'[') && next == Some(b']');
        if is_empty {
            text.skip(1);
        }
        if is_empty || before == Some(b']') {
            ensure_valid!(text.peek_word()?.is_none(), "{}", text.malformed("trailing characters"));
            return Ok(None);
        }
        match next {
            Some(b']') => return Err(text.malformed("trailing comma")),
            Some(b',') => return Err(text.malformed("expected value")),
            None => return Err(text.malformed("EOF while parsing a list")),
            Some(_) => {}
        }
        let piece = text.element()?;
        self.count += 1;
        Ok(Some((Place::Item(self.count), piece)))
    }
}

impl Iterator for Elements {
    type Item = Result<(Place, Piece)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let next = self.following().transpose();
        self.is_over = !matches!(next, Some(Ok(_)));
        next
    }
}

/// The fields of a record.
///
/// # Errors
/// Malformed JSON; a value that is not an object, or holds a key twice.
pub fn fields(place: Place, piece: &Piece) -> Result<Map<String, Value>, Unusable> {
    let text = big::marked(&piece.text).map_err(|error| Unusable { place, error, hint: None })?;
    let malformed = |e: Error| match place {
        Place::Item(_) => Unusable {
            place: Place::Line(piece.line + e.line().saturating_sub(1)),
            error: invalid!("malformed JSON: {}", reason(&e)),
            hint: None,
        },
        _ => Unusable {
            place,
            error: invalid!("malformed JSON at column {}: {}", e.column(), reason(&e)),
            hint: Some(WHAT_IS_READ),
        },
    };
    object(read_one(&text).map_err(malformed)?).map_err(|error| Unusable { place, error, hint: None })
}

fn object((value, twice): Parsed) -> Result<Map<String, Value>> {
    refuse_twice(twice)?;
    match value {
        Value::Object(fields) => Ok(fields),
        other => Err(invalid!("expected a JSON object, got {}", kind(&other))),
    }
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

/// serde_json's message without its own line number, which counts from the record's beginning.
fn reason(error: &Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().to_lowercase()
}

fn refuse_twice(twice: Option<String>) -> Result<()> {
    ensure_valid!(
        twice.is_none(),
        "key `{}` occurs twice in the same object, and only one of the two can count; remove the other",
        twice.unwrap_or_default()
    );
    Ok(())
}

//! Records as they come from a file, before anybody looks into them: that can be done by several threads.

use super::json;
use super::record::{Place, Record, Unusable};
use super::text::Piece;
use serde_json::{Map, Value};

/// A record whose content may still be text.
pub struct Unread {
    place: Place,
    content: Content,
}

enum Content {
    Json(Piece),
    Fields(Map<String, Value>),
}

impl Unread {
    pub fn place(&self) -> Place {
        self.place
    }

    /// How much memory it takes, about.
    pub fn bytes(&self) -> usize {
        match &self.content {
            Content::Json(piece) => piece.text.len(),
            Content::Fields(fields) => members(fields),
        }
    }

    /// # Errors
    /// JSON that is malformed, is not an object, or holds a key twice.
    pub fn record(self) -> Result<Record, Unusable> {
        let fields = match self.content {
            Content::Json(piece) => json::fields(self.place, &piece)?,
            Content::Fields(fields) => fields,
        };
        Ok(Record { fields, place: self.place })
    }
}

/// Bytes of an object's keys and values.
fn members(fields: &Map<String, Value>) -> usize {
    fields.iter().map(|(key, value)| size_of::<String>() + key.len() + bytes(value)).sum()
}

/// Bytes of a value, about.
fn bytes(value: &Value) -> usize {
    let inside = match value {
        Value::String(text) => text.len(),
        Value::Array(list) => list.iter().map(bytes).sum(),
        Value::Object(fields) => members(fields),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    };
    size_of::<Value>() + inside
}

impl From<(Place, Piece)> for Unread {
    fn from((place, piece): (Place, Piece)) -> Self {
        Self { place, content: Content::Json(piece) }
    }
}

impl From<Record> for Unread {
    fn from(record: Record) -> Self {
        Self { place: record.place, content: Content::Fields(record.fields) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_lists_and_objects_hold_counts() {
        let bytes = |value: Value| {
            let fields = value.as_object().unwrap().clone();
            Unread::from(Record { fields, place: Place::Row(1) }).bytes()
        };
        let ids: Vec<usize> = (0..1000).collect();
        assert!(bytes(json!({ "ids": ids })) > 1000 * size_of::<Value>());
        let text = "x".repeat(500);
        assert!(bytes(json!({"messages": [{"content": text}, {"content": text}]})) > 1000);
        assert!(bytes(json!({"a": 1})) < 200);
    }
}

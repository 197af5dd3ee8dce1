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
            // A table's fields: texts for the most part.
            Content::Fields(fields) => fields.values().map(|value| value.as_str().map_or(64, str::len)).sum(),
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

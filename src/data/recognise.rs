//! Which format a file's records have, by their fields.

use super::options::Format;
use super::records::read;
use crate::error::listing;
use crate::invalid;
use anyhow::Result;
use std::path::Path;

/// What a record of each format cannot do without; the more telling formats first.
const NEEDED: [(Format, &[&str]); 6] = [
    (Format::Tokenized, &["input_ids", "labels"]),
    (Format::Chat, &["messages"]),
    (Format::Sharegpt, &["conversations"]),
    (Format::PromptCompletion, &["prompt", "completion"]),
    (Format::Alpaca, &["instruction", "output"]),
    (Format::Text, &["text"]),
];

/// The format of the first record of `path`.
///
/// # Errors
/// A file that cannot be read; fields that are those of no format.
pub fn recognise(path: &Path) -> Result<Format> {
    let records = read(path)?;
    let fields = &records[0].fields;
    let found = NEEDED.iter().find(|(_, needed)| needed.iter().all(|name| fields.contains_key(*name)));
    found.map(|(format, _)| *format).ok_or_else(|| {
        let names: Vec<&String> = fields.keys().collect();
        let formats: Vec<String> = NEEDED.iter().map(|(_, needed)| needed.join(" and ")).collect();
        invalid!(
            "{}: its records have the fields {}, which no format has; expected one of: {} (`data.columns` maps other \
             names)",
            path.display(),
            listing(&names, 12),
            formats.join("; ")
        )
    })
}

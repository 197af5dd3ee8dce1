//! Which format a file's records have, by their fields.

use super::records::Reader;
use super::source::options::Format;
use crate::error::listing;
use crate::invalid;
use anyhow::Result;
use std::path::Path;

/// The more telling formats first.
const FORMATS: [Format; 6] =
    [Format::Tokenized, Format::Chat, Format::Sharegpt, Format::PromptCompletion, Format::Alpaca, Format::Text];

/// The format of the first record of `path`.
///
/// # Errors
/// A file that cannot be read; fields that are those of no format.
pub fn recognise(path: &Path) -> Result<Format> {
    let Some(first) = Reader::open(path)?.next() else { return Err(invalid!("{} is empty", path.display())) };
    let record = first?.record().map_err(|unusable| unusable.error.context(path.display().to_string()))?;
    let fields = record.fields;
    let found =
        FORMATS.into_iter().find(|format| format.required_fields().iter().all(|name| fields.contains_key(*name)));
    found.ok_or_else(|| {
        let names: Vec<&String> = fields.keys().collect();
        let formats: Vec<String> = FORMATS.iter().map(|format| format.required_fields().join(" and ")).collect();
        invalid!(
            "{}: its records have the fields {}, which no format has; expected one of: {} (`data.columns` maps other \
             names)",
            path.display(),
            listing(&names, 12),
            formats.join("; ")
        )
    })
}

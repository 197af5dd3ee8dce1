//! Which format a file's records have, by their fields.

use super::records::{Reader, Record};
use super::source::options::Format;
use crate::error::listing;
use crate::invalid;
use anyhow::{Context, Result};
use std::path::Path;

/// The more telling formats first.
const FORMATS: [Format; 6] =
    [Format::Tokenized, Format::Chat, Format::Sharegpt, Format::PromptCompletion, Format::Alpaca, Format::Text];

/// The format of the first record of `path`.
///
/// # Errors
/// A file that cannot be read; fields that are those of no format.
pub fn recognise(path: &Path) -> Result<Format> {
    let first = Reader::open(path)?.next().context("a reader gives a record or why there is none")?;
    let Record { fields, place } = first?.record().map_err(|unusable| unusable.at(path))?;
    let found =
        FORMATS.into_iter().find(|format| format.required_fields().iter().all(|name| fields.contains_key(*name)));
    found.ok_or_else(|| {
        let names: Vec<&String> = fields.keys().collect();
        let formats: Vec<String> = FORMATS.iter().map(|format| format.required_fields().join(" and ")).collect();
        invalid!(
            "{}{place}: the record has the fields {}, which no format has; expected those of one of: {} (`data.columns` \
             maps other names)",
            path.display(),
            listing(&names, 12),
            formats.join("; ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_record_tells_the_format_or_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let of = |text: &str| {
            let path = dir.path().join("data.jsonl");
            std::fs::write(&path, text).unwrap();
            recognise(&path).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(of("\n{\"messages\": []}"), Ok(Format::Chat));
        for (text, expected) in [
            ("\n\n{\"messages\": \n", "data.jsonl:3: malformed JSON"),
            ("\n{\"question\": 1}", "data.jsonl:2: the record has the fields question, which no format has"),
            ("\n", "data.jsonl is empty"),
        ] {
            let error = of(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}

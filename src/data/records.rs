//! Records of a dataset file, each with its place.
//!
//! The file's name says what it is: `.csv` and `.tsv` are tables with a header (csv.rs), `.parquet`, or any file that
//! begins like Parquet, is Parquet (parquet.rs); anything else is JSON: an array of objects if its first character is
//! `[`, JSONL (one object per line) if not (json.rs). Text is UTF-8, with or without a byte order mark, and may be
//! compressed (compressed.rs).

mod big;
mod compressed;
mod csv;
mod json;
mod parquet;
mod record;
mod watched;

pub use big::{integer, is_text, restored};
pub use json::parse;
pub use record::{Place, Record, kind};

use crate::error::path_hint;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use std::io::Read;
use std::path::Path;

/// Reads every record of `path`, in file order.
///
/// # Errors
/// A missing, unreadable or empty file; text that is not UTF-8; malformed JSON, a ragged table row (with its line),
/// a damaged Parquet file; a record that is not an object, or holds a key twice.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    ensure_valid!(path.is_file(), "dataset {} does not exist (or is not a file){}", path.display(), path_hint(path));
    let records = match compressed::extension(path).as_deref() {
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
    let mut text = String::from_utf8(compressed::bytes(path)?).map_err(|e| {
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

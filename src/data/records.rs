//! Records of a dataset file, each with its place.
//!
//! The file's name says what it is: `.csv` and `.tsv` are tables with a header (csv.rs), `.parquet`, or any file that
//! begins like Parquet, is Parquet (parquet.rs); anything else is JSON: an array of objects if its first character is
//! `[`, JSONL (one object per line) if not (json.rs). Text is UTF-8, with or without a byte order mark, and may be
//! compressed (compressed.rs). No more is read than is asked for.

mod bad;
mod big;
mod compressed;
mod csv;
mod json;
mod parquet;
mod record;
mod text;
mod unread;
mod watched;

pub use bad::BadRecords;
pub use big::{integer, is_text, restored};
pub use json::parse;
pub use record::{Place, Record, Unusable, kind};
pub use unread::Unread;

use crate::error::path_hint;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use text::Text;

/// Reads the records of a file one after another, in file order.
pub struct Reader {
    path: PathBuf,
    records: Box<dyn Iterator<Item = Result<Unread>>>,
    taken: Arc<AtomicU64>,
    count: usize,
}

impl Reader {
    /// # Errors
    /// A missing or unreadable file; a table whose header has a name twice; a damaged Parquet file; an Arrow file.
    pub fn open(path: &Path) -> Result<Self> {
        ensure_valid!(
            path.is_file(),
            "dataset {} does not exist (or is not a file){}",
            path.display(),
            path_hint(path)
        );
        refuse_arrow(path)?;
        let taken = Arc::default();
        let table = |delimiter| csv::Rows::new(path, Text::open(path, &taken)?, delimiter);
        let is_parquet = extension(path).as_deref() == Some("parquet");
        let records: Box<dyn Iterator<Item = Result<Unread>>> = match extension(path).as_deref() {
            Some("csv") => Box::new(table(b',')?.map(|record| record.map(Unread::from))),
            Some("tsv") => Box::new(table(b'\t')?.map(|record| record.map(Unread::from))),
            _ if is_parquet || begins_with(path, parquet::MAGIC) => {
                Box::new(parquet::Rows::open(path, &taken)?.map(|record| record.map(Unread::from)))
            }
            _ => Box::new(json::records(Text::open(path, &taken)?).map(|piece| piece.map(Unread::from))),
        };
        Ok(Self { path: path.to_path_buf(), records, taken, count: 0 })
    }

    /// Bytes of the file that were read.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Iterator for Reader {
    type Item = Result<Unread>;

    /// # Errors
    /// A part of the file that cannot be read, after which there is no more; a file without records.
    fn next(&mut self) -> Option<Result<Unread>> {
        match self.records.next() {
            Some(record) => {
                self.count += 1;
                Some(record)
            }
            None if self.count == 0 => {
                self.count = 1;
                Some(Err(invalid!("dataset {} is empty: expected at least one record", self.path.display())))
            }
            None => None,
        }
    }
}

/// Reads every record of `path`, in file order.
///
/// # Errors
/// As [`Reader`]; records that cannot be used: malformed JSON, what is no object, or holds a key twice.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let (mut records, mut bad, mut count) = (vec![], BadRecords::default(), 0);
    for unread in Reader::open(path)? {
        count += 1;
        match unread?.record() {
            Ok(record) => records.push(record),
            Err(unusable) => bad.note_unusable(path, unusable)?,
        }
    }
    bad.refuse(path, count, count)?;
    Ok(records)
}

/// The ending of a file's name that says what it holds, in lower case: `jsonl` of `data.JSONL.gz`.
pub fn extension(path: &Path) -> Option<String> {
    compressed::extension(path)
}

/// Whether a file is one whose records all have the same columns.
pub fn is_table(path: &Path) -> bool {
    matches!(extension(path).as_deref(), Some("parquet" | "csv" | "tsv")) || begins_with(path, parquet::MAGIC)
}

/// Refuses Arrow's file format, which is also Feather's, and its stream format, which `datasets` writes.
fn refuse_arrow(path: &Path) -> Result<()> {
    let ending = extension(path);
    let is_file = begins_with(path, b"ARROW1") || ending.as_deref() == Some("feather");
    let reader = match (is_file, ending.as_deref()) {
        (true, _) => "pandas.read_feather",
        (false, Some("arrow")) => "datasets.Dataset.from_file",
        (false, _) if begins_with(path, &[0xff; 4]) => "datasets.Dataset.from_file",
        (false, _) => return Ok(()),
    };
    Err(invalid!(
        "{0}: Arrow files are not read here; make it Parquet, in Python: {reader}(\"{0}\").to_parquet(\"train.parquet\")",
        path.display()
    ))
}

fn begins_with(path: &Path, magic: &[u8]) -> bool {
    let mut head = vec![0; magic.len()];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok_and(|()| head == magic)
}

#[cfg(test)]
mod tests;

//! Whether the files of one source have the same columns: what one of them calls otherwise would be lost without a word.

use super::records::{Place, is_table};
use crate::error::listing;
use crate::invalid;
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Most columns that a message lists.
const SHOWN: usize = 12;

/// The columns of a file, each with the first record that has it.
type Found = BTreeMap<String, Place>;

/// The columns of a source's files as they are read.
#[derive(Default)]
pub struct Shards {
    /// Those of the files before, with the first file of each kind.
    known: Vec<(PathBuf, Found)>,
    /// Those of the present one so far.
    present: Found,
}

impl Shards {
    /// Notes the columns of the record at `place`.
    pub fn note(&mut self, columns: Vec<String>, place: Place) {
        for name in columns {
            self.present.entry(name).or_insert(place);
        }
    }

    /// Compares the columns of the file that was read last with those of every file before.
    ///
    /// # Errors
    /// They differ: for tables in any way, for JSON, whose records may leave a field out, if each has what the other lacks.
    pub fn end_of(&mut self, path: &Path) -> Result<()> {
        let found = std::mem::take(&mut self.present);
        if let Some((other, known)) = self.known.iter().find(|(other, known)| differ(&found, known, path, other)) {
            return Err(refusal((path, &found), (other, known)));
        }
        let is_kind =
            |(other, known): &(PathBuf, Found)| known.keys().eq(found.keys()) && is_table(other) == is_table(path);
        if !self.known.iter().any(is_kind) {
            self.known.push((path.to_path_buf(), found));
        }
        Ok(())
    }
}

fn differ(found: &Found, known: &Found, path: &Path, other: &Path) -> bool {
    let lacks = |one: &Found, other: &Found| other.keys().any(|name| !one.contains_key(name));
    let (more, fewer) = (lacks(known, found), lacks(found, known));
    more && fewer || (more || fewer) && is_table(path) && is_table(other)
}

fn refusal((path, found): (&Path, &Found), (other, known): (&Path, &Found)) -> anyhow::Error {
    let odd = found.iter().find(|(name, _)| !known.contains_key(*name)).or(found.iter().next());
    let names = |found: &Found| listing(&found.keys().collect::<Vec<_>>(), SHOWN);
    invalid!(
        "{}{}: its columns are {}, those of {}, of the same source, are {}; make them the same, or name the files as \
         sources of their own, each with its `columns`",
        path.display(),
        odd.map_or(String::new(), |(_, place)| place.to_string()),
        names(found),
        other.display(),
        names(known)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files with the columns of their records.
    fn check(files: &[(&str, &[&str])]) -> Result<()> {
        let mut shards = Shards::default();
        for (path, records) in files {
            for (i, columns) in records.iter().enumerate() {
                shards.note(columns.split(' ').map(String::from).collect(), Place::Line(i + 1));
            }
            shards.end_of(Path::new(path))?;
        }
        Ok(())
    }

    #[test]
    fn columns_that_differ_are_refused_with_their_row() {
        let error = check(&[("1.jsonl", &["a b"]), ("2.jsonl", &["a", "a c"])]).unwrap_err().to_string();
        for part in ["2.jsonl:2: its columns are a, c", "those of 1.jsonl", "are a, b"] {
            assert!(error.contains(part), "{error}");
        }
        // A field may be left out of every record of a file.
        check(&[("1.jsonl", &["a b"]), ("2.jsonl", &["a"]), ("3.jsonl", &["a b", "a"])]).unwrap();
        // Files are held against every other, whatever their order.
        let error =
            check(&[("1.jsonl", &["a"]), ("2.jsonl", &["a b"]), ("3.jsonl", &["a c"])]).unwrap_err().to_string();
        assert!(error.contains("3.jsonl:1: its columns are a, c, those of 2.jsonl"), "{error}");
        assert!(check(&[("1.jsonl", &["a"]), ("2.csv", &["a b"]), ("3.csv", &["a"])]).is_err());
        check(&[("1.csv", &["a b"]), ("2.jsonl", &["a"]), ("3.csv", &["a b"])]).unwrap();
        assert!(check(&[("1.csv", &["a b"]), ("2.csv", &["a"])]).is_err());
        check(&[("1.csv", &["a b"]), ("2.csv", &["a b"])]).unwrap();
    }
}

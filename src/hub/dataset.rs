//! Which file of a dataset repository is meant.

use crate::error::{listing, nearest};
use crate::{ensure_valid, invalid};
use anyhow::Result;

/// Extensions of files that can be read as samples.
const DATA_EXTENSIONS: [&str; 6] = [".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"];
/// Files with such an extension that do not hold samples.
const METADATA: [&str; 5] =
    ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json"];
const TRAIN: [&str; 2] = ["train", "training"];
const VALIDATION: [&str; 5] = ["validation", "valid", "val", "dev", "eval"];
const TEST: [&str; 2] = ["test", "testing"];
/// How many candidates a message lists.
const SHOWN: usize = 20;

/// What a dataset is needed for: its file names often say which part of it they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    Validation,
    /// Whatever there is, if it is one file.
    Any,
}

pub(super) fn is_data_file(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    DATA_EXTENSIONS.iter().any(|extension| name.ends_with(extension)) && !name.starts_with('.')
}

/// The one of `files` that is meant: the one asked for, or else the one for the split.
///
/// A file is for a split if a word in its path says so (`data/train-00000-of-00001.parquet`). If no path says so, the
/// one file that belongs to no other split is taken.
///
/// # Errors
/// No such file, no file, or several.
pub(super) fn choose<'a>(id: &str, files: &[&'a str], path: Option<&str>, split: Split) -> Result<&'a str> {
    let candidates: Vec<&str> = files
        .iter()
        .copied()
        .filter(|file| is_data_file(file) && !METADATA.contains(&file.rsplit('/').next().unwrap_or(file)))
        .collect();
    if let Some(path) = path {
        return named(path, files, &candidates);
    }
    ensure_valid!(
        !candidates.is_empty(),
        "it has no data file that can be read here (.json, .jsonl, .ndjson, .csv, .tsv, .parquet) among: {}",
        listing(files, SHOWN)
    );
    let (meant, others): (&[&str], Vec<&str>) = match split {
        Split::Train => (&TRAIN, [&VALIDATION[..], &TEST].concat()),
        Split::Validation => (&VALIDATION, [&TRAIN[..], &TEST].concat()),
        Split::Any => (&[], vec![]),
    };
    let matching: Vec<&str> = candidates.iter().copied().filter(|file| has_word(file, meant)).collect();
    let neutral: Vec<&str> = candidates.iter().copied().filter(|file| !has_word(file, &others)).collect();
    match (matching.as_slice(), neutral.as_slice()) {
        ([file], _) | ([], [file]) => Ok(file),
        _ => Err(invalid!(
            "it is not clear which file is meant; name one, as in `{id}:{}`: {}",
            candidates.first().unwrap_or(&""),
            listing(if matching.is_empty() { &candidates } else { &matching }, SHOWN)
        )),
    }
}

fn named<'a>(path: &str, files: &[&'a str], candidates: &[&'a str]) -> Result<&'a str> {
    let Some(file) = files.iter().find(|file| **file == path) else {
        let hint = nearest(path, candidates.iter().copied()).map(|near| format!(" (did you mean `{near}`?)"));
        return Err(invalid!(
            "it has no file `{path}`{}; its data files: {}",
            hint.unwrap_or_default(),
            listing(candidates, SHOWN)
        ));
    };
    ensure_valid!(
        is_data_file(file),
        "`{path}` cannot be read here; expected .json, .jsonl, .ndjson, .csv, .tsv or .parquet"
    );
    Ok(file)
}

fn has_word(path: &str, words: &[&str]) -> bool {
    path.to_ascii_lowercase().split(|c: char| !c.is_ascii_alphanumeric()).any(|word| words.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(files: &[&str], split: Split) -> Result<String, String> {
        choose("org/name", files, None, split).map(String::from).map_err(|e| e.to_string())
    }

    #[test]
    fn one_file_is_meant() {
        let alone = ["README.md", "dataset_infos.json", "alpaca_data.json"];
        for split in [Split::Train, Split::Validation, Split::Any] {
            assert_eq!(chosen(&alone, split).unwrap(), "alpaca_data.json");
        }
        let splits =
            ["data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet", "data/test.parquet"];
        assert_eq!(chosen(&splits, Split::Train).unwrap(), splits[0]);
        assert_eq!(chosen(&splits, Split::Validation).unwrap(), splits[1]);
        assert_eq!(chosen(&["samples.csv", "test.csv"], Split::Train).unwrap(), "samples.csv");
        // A longer word that contains it does not name the split.
        assert_eq!(chosen(&["trainer.json"], Split::Train).unwrap(), "trainer.json");
    }

    #[test]
    fn what_is_unclear_is_listed() {
        let shards = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test.parquet"];
        let error = chosen(&shards, Split::Train).unwrap_err();
        assert!(error.contains("org/name:train-00000") && error.contains(shards[1]), "{error}");
        assert!(!error.contains("test.parquet,"), "{error}");
        // A training file is never taken for a validation file, nor the other way round.
        assert!(chosen(&["train.csv"], Split::Validation).unwrap_err().contains("not clear"));
        assert!(chosen(&["dev.csv"], Split::Train).unwrap_err().contains("not clear"));
        assert!(chosen(&["train.csv", "test.csv"], Split::Any).unwrap_err().contains("train.csv, test.csv"));
        let error = chosen(&["README.md", "data.tar.gz"], Split::Train).unwrap_err();
        assert!(error.contains("no data file") && error.contains("data.tar.gz"), "{error}");
    }

    #[test]
    fn a_named_file_must_be_there_and_readable() {
        let files = ["data/train.csv", "data/test.csv", "notes.txt"];
        let named = |path| choose("org/name", &files, Some(path), Split::Train).map_err(|e| e.to_string());
        assert_eq!(named("data/test.csv").unwrap(), "data/test.csv");
        let error = named("data/trian.csv").unwrap_err();
        assert!(error.contains("did you mean `data/train.csv`") && error.contains("data/test.csv"), "{error}");
        assert!(named("notes.txt").unwrap_err().contains("cannot be read"));
    }
}

//! Which files of a dataset repository, or of a folder, are meant.

use crate::error::{listing, nearest};
use crate::{ensure_valid, invalid};
use anyhow::Result;

/// Extensions of files that can be read as samples.
const DATA_EXTENSIONS: [&str; 6] = [".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"];
/// Extensions of their compressed forms.
const COMPRESSED: [&str; 3] = [".gz", ".zst", ".zstd"];
/// Files with such an extension that do not hold samples.
const METADATA: [&str; 5] =
    ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json"];
const TRAIN: [&str; 2] = ["train", "training"];
const VALIDATION: [&str; 5] = ["validation", "valid", "val", "dev", "eval"];
const TEST: [&str; 2] = ["test", "testing"];
/// What helps with Arrow files.
const SAVED_HINT: &str = "; Arrow files are not read here: in Python, datasets.load_from_disk(FOLDER) gives them back, and \
                          .to_parquet(\"train.parquet\") of a split writes what is read";
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
    let name = COMPRESSED.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(&name);
    DATA_EXTENSIONS.iter().any(|extension| name.ends_with(extension)) && !name.starts_with('.')
}

/// Those of `files` that are meant: the one asked for, or else the one for the split, or its shards in their order.
///
/// A file is for a split if a word in its path says so (`data/train-00000-of-00001.parquet`). If no path says so, the
/// one file that belongs to no other split is taken. Shards are files whose paths differ in numbers alone.
///
/// `place`: what is written before a path to name that file alone.
///
/// # Errors
/// No such file, no file, or several that are not shards of one.
pub(super) fn choose<'a>(place: &str, files: &[&'a str], path: Option<&str>, split: Split) -> Result<Vec<&'a str>> {
    let candidates: Vec<&str> = files
        .iter()
        .copied()
        .filter(|file| is_data_file(file) && !METADATA.contains(&file.rsplit('/').next().unwrap_or(file)))
        .collect();
    if let Some(path) = path {
        return named(path, files, &candidates).map(|file| vec![file]);
    }
    ensure_valid!(
        !candidates.is_empty(),
        "it has no data file that can be read here (.json, .jsonl, .ndjson, .csv, .tsv, .parquet) among: {}{}",
        listing(files, SHOWN),
        if files.iter().any(is_saved) { SAVED_HINT } else { "" }
    );
    let (meant, others): (&[&str], Vec<&str>) = match split {
        Split::Train => (&TRAIN, [&VALIDATION[..], &TEST].concat()),
        Split::Validation => (&VALIDATION, [&TRAIN[..], &TEST].concat()),
        Split::Any => (&[], vec![]),
    };
    let matching: Vec<&str> = candidates.iter().copied().filter(|file| has_word(file, meant)).collect();
    let neutral: Vec<&str> = candidates.iter().copied().filter(|file| !has_word(file, &others)).collect();
    match (matching.as_slice(), neutral.as_slice()) {
        ([file], _) | ([], [file]) => Ok(vec![file]),
        (shards @ [_, ..], _) | ([], shards @ [_, ..]) if are_shards(shards) => Ok(in_order(shards.to_vec())),
        _ => Err(invalid!(
            "it is not clear which file is meant; name one, as in `{place}{}`: {}",
            candidates.first().unwrap_or(&""),
            listing(if matching.is_empty() { &candidates } else { &matching }, SHOWN)
        )),
    }
}

/// Whether it is one of the files that `datasets` writes with `save_to_disk`.
fn is_saved(path: &&str) -> bool {
    path.ends_with(".arrow") || *path == "dataset_dict.json"
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

/// Whether the paths differ in numbers alone.
fn are_shards(paths: &[&str]) -> bool {
    let pattern =
        |path: &str| path.split(|c: char| c.is_ascii_digit()).filter(|part| !part.is_empty()).collect::<String>();
    let has_number = |path: &&str| path.contains(|c: char| c.is_ascii_digit());
    paths.iter().all(has_number) && paths.windows(2).all(|pair| pattern(pair[0]) == pattern(pair[1]))
}

/// Paths in natural order: numbers by their value, the rest as text.
pub(super) fn in_order<P: AsRef<str>>(mut paths: Vec<P>) -> Vec<P> {
    paths.sort_by_cached_key(|path| key(path.as_ref()));
    paths
}

/// Texts and numbers of a path, in turn; the numbers padded to the length of the largest in use.
fn key(path: &str) -> String {
    let parts = path.as_bytes().chunk_by(|a, b| a.is_ascii_digit() == b.is_ascii_digit());
    let padded = |part: &[u8]| {
        let text = String::from_utf8_lossy(part);
        if part.first().is_some_and(u8::is_ascii_digit) { format!("{text:0>20}") } else { text.into_owned() }
    };
    parts.map(padded).collect()
}

fn has_word(path: &str, words: &[&str]) -> bool {
    path.to_ascii_lowercase().split(|c: char| !c.is_ascii_alphanumeric()).any(|word| words.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(files: &[&str], split: Split) -> Result<String, String> {
        choose("org/name:", files, None, split).map(|files| files.join(" ")).map_err(|e| e.to_string())
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
    fn shards_are_taken_in_their_order() {
        let shards = ["a/train-10-of-11.parquet", "a/train-9-of-11.parquet", "a/test-0-of-1.parquet"];
        assert_eq!(chosen(&shards, Split::Train).unwrap(), format!("{} {}", shards[1], shards[0]));
        assert_eq!(
            chosen(&["part-2.jsonl.gz", "part-1.jsonl.gz"], Split::Any).unwrap(),
            "part-1.jsonl.gz part-2.jsonl.gz"
        );
        assert_eq!(in_order(vec!["b2", "b10", "b1", "a"]), ["a", "b1", "b2", "b10"]);
    }

    #[test]
    fn what_is_unclear_is_listed() {
        let two = ["train-easy.parquet", "train-hard.parquet", "test.parquet"];
        let error = chosen(&two, Split::Train).unwrap_err();
        assert!(error.contains("org/name:train-easy") && error.contains(two[1]), "{error}");
        assert!(!error.contains("test.parquet,"), "{error}");
        // A training file is never taken for a validation file, nor the other way round.
        assert!(chosen(&["train.csv"], Split::Validation).unwrap_err().contains("not clear"));
        assert!(chosen(&["dev.csv"], Split::Train).unwrap_err().contains("not clear"));
        assert!(chosen(&["train.csv", "test.csv"], Split::Any).unwrap_err().contains("train.csv, test.csv"));
        let error = chosen(&["README.md", "data.tar.gz"], Split::Train).unwrap_err();
        assert!(error.contains("no data file") && error.contains("data.tar.gz"), "{error}");
    }

    #[test]
    fn what_save_to_disk_wrote_is_refused_with_what_to_do() {
        let saved = ["data-00000-of-00001.arrow", "dataset_info.json", "state.json"];
        for files in [&saved[..], &["dataset_dict.json"]] {
            let error = chosen(files, Split::Train).unwrap_err();
            assert!(error.contains("datasets.load_from_disk(FOLDER)") && error.contains("to_parquet"), "{error}");
        }
        assert!(!chosen(&["README.md"], Split::Train).unwrap_err().contains("Arrow"));
    }

    #[test]
    fn a_named_file_must_be_there_and_readable() {
        let files = ["data/train.csv", "data/test.csv", "notes.txt"];
        let named = |path| choose("org/name:", &files, Some(path), Split::Train).map_err(|e| e.to_string());
        assert_eq!(named("data/test.csv").unwrap(), ["data/test.csv"]);
        let error = named("data/trian.csv").unwrap_err();
        assert!(error.contains("did you mean `data/train.csv`") && error.contains("data/test.csv"), "{error}");
        assert!(named("notes.txt").unwrap_err().contains("cannot be read"));
    }
}

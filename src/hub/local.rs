//! Datasets of several files on this machine: a folder, or a pattern.

use super::dataset::{Split, choose, in_order};
use crate::error::path_hint;
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Whether a name holds what patterns are made of.
pub fn is_pattern(name: &str) -> bool {
    name.contains(['*', '?', '['])
}

/// The files that a pattern such as `data/*.jsonl` or `data/**/part-?.parquet` matches, in natural order.
///
/// # Errors
/// A malformed pattern; no match.
pub fn matching(pattern: &str) -> Result<Vec<PathBuf>> {
    let found = glob::glob(pattern).map_err(|e| invalid!("{pattern} is not a valid pattern: {e}"))?;
    let mut files = vec![];
    for file in found {
        let file = file.map_err(|e| invalid!("{pattern}: cannot read {}: {}", e.path().display(), e.error()))?;
        if file.is_file() {
            files.push(text_of(&file)?);
        }
    }
    // The part without a pattern may be misspelt.
    let fixed: PathBuf =
        Path::new(pattern).components().take_while(|part| !is_pattern(&part.as_os_str().to_string_lossy())).collect();
    let hint = if fixed.exists() { String::new() } else { path_hint(&fixed) };
    ensure_valid!(!files.is_empty(), "{pattern} matches no file{hint}");
    Ok(in_order(files).into_iter().map(PathBuf::from).collect())
}

/// The data files of a folder that are meant for a split.
///
/// # Errors
/// A folder that cannot be read, or that leaves a choice.
pub fn in_folder(folder: &Path, split: Split) -> Result<Vec<PathBuf>> {
    let reading = |e| invalid!("cannot read {}: {e}", folder.display());
    let mut names = vec![];
    for entry in std::fs::read_dir(folder).map_err(reading)? {
        let entry = entry.map_err(reading)?;
        if entry.path().is_file() {
            names.push(text_of(Path::new(&entry.file_name()))?);
        }
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let place = format!("{}/", folder.display());
    let chosen = choose(&place, &names, None, split).with_context(|| format!("the folder {}", folder.display()))?;
    Ok(chosen.into_iter().map(|name| folder.join(name)).collect())
}

fn text_of(path: &Path) -> Result<String> {
    path.to_str().map(String::from).ok_or_else(|| invalid!("{}: the file's name is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_and_folders_give_their_files_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["part-10.jsonl", "part-9.jsonl", "part-9.txt", "test.jsonl"] {
            std::fs::write(dir.path().join(name), "{}").unwrap();
        }
        std::fs::create_dir(dir.path().join("part-1.jsonl")).unwrap();
        let paths = |names: [&str; 2]| names.map(|name| dir.path().join(name)).to_vec();
        let pattern = |name: &str| dir.path().join(name).display().to_string();
        let both = paths(["part-9.jsonl", "part-10.jsonl"]);
        assert_eq!(matching(&pattern("part-*.jsonl")).unwrap(), both);
        assert_eq!(in_folder(dir.path(), Split::Train).unwrap(), both);
        let error = |name: &str| matching(&pattern(name)).unwrap_err().to_string();
        assert!(error("*.csv").ends_with("*.csv matches no file"), "{}", error("*.csv"));
        assert!(error("[").contains("not a valid pattern"));
        std::fs::write(dir.path().join("other.jsonl"), "{}").unwrap();
        let error = format!("{:#}", in_folder(dir.path(), Split::Train).unwrap_err());
        assert!(error.contains("not clear which file is meant") && error.contains("other.jsonl"), "{error}");
    }
}

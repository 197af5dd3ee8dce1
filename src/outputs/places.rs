//! Which file a path leads to, whatever links and other names there are.

use crate::checkpoint::existing;
use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// Device and inode.
pub type Identity = (u64, u64);

/// What `path` leads to; `None` if there is nothing.
pub fn identity(path: &Path) -> Option<Identity> {
    std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Whether a file or folder at `path` is or will be below the folder, through links or where the last link itself is.
pub fn lies_in(path: &Path, folder: Identity) -> bool {
    let here = resolved(path);
    let target = std::fs::canonicalize(&here).unwrap_or_else(|_| here.clone());
    [here, target].iter().any(|path| path.ancestors().skip(1).any(|place| identity(place) == Some(folder)))
}

/// The path itself or, if only folders that are still to be created keep it from leading to something, where it then
/// leads: `new/../data.jsonl` is `data.jsonl`.
pub fn actual(path: &Path) -> PathBuf {
    let exists = |path: &PathBuf| path.symlink_metadata().is_ok();
    let own = path.to_path_buf();
    if exists(&own) { own } else { Some(resolved(path)).filter(exists).unwrap_or(own) }
}

/// Where a path leads to, or will once it is written: absolute and without links, so that equal places have equal paths.
pub fn leads_to(path: &Path) -> PathBuf {
    let own = resolved(path);
    std::fs::canonicalize(&own).unwrap_or(own)
}

/// The absolute path: without links, except that the last part may be one, and without `..`, also where folders are
/// still to be created.
fn resolved(path: &Path) -> PathBuf {
    let Some(name) = path.file_name() else { return std::fs::canonicalize(path).unwrap_or_default() };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let place = existing(parent);
    let mut full = std::fs::canonicalize(place).unwrap_or_default();
    // These do not exist, so none is a link.
    for part in parent.strip_prefix(place).unwrap_or(parent).components() {
        match part {
            Component::ParentDir => {
                full.pop();
            }
            Component::Normal(part) => full.push(part),
            _ => {}
        }
    }
    std::fs::canonicalize(&full).unwrap_or(full).join(name)
}

/// The path itself or, if there is nothing but it is a pattern, what that matches.
pub fn matching(path: &Path) -> Vec<PathBuf> {
    let found = path.to_str().filter(|_| !path.exists()).and_then(|pattern| glob::glob(pattern).ok());
    let found: Vec<PathBuf> = found.into_iter().flatten().flatten().collect();
    if found.is_empty() { vec![path.to_path_buf()] } else { found }
}

/// A file in `folder`, or in one below it, that is the file `path` by another name.
pub fn same_file_in(folder: &Path, path: &Path) -> Option<PathBuf> {
    let wanted = identity(path)?;
    let (mut seen, mut folders) = (HashSet::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        // Links may lead in a circle.
        if !identity(&folder).is_some_and(|folder| seen.insert(folder)) {
            continue;
        }
        // What may not be read is not read as an input either.
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let found = entry.path();
            if found.is_dir() {
                folders.push(found);
            } else if identity(&found) == Some(wanted) {
                return Some(found);
            }
        }
    }
    None
}

//! The sample files that a result depends on, by content: a change to one makes results stale.

use crate::config::Settings;
use crate::hub::{self, Split};
use crate::report::hash_files;
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A file's name in config or suite, and the beginning of its content's BLAKE3, in hex.
pub type Contents = BTreeMap<String, String>;

const DIGITS: usize = 16;

/// The local files that a run trains on. Those `known` are not read again; the others become known. Missing files are
/// left for the run to report.
///
/// # Errors
/// A file that cannot be read.
pub fn of_run(settings: &Settings, known: &mut Contents) -> Result<Contents> {
    let data = &settings.data;
    let (sources, own) = (data.sources(), settings.defence.files());
    let sources = sources.iter().map(|listed| &listed.source.path);
    let named = sources.chain(data.validation_file()).chain(own);
    // Nothing is fetched for what is on this machine.
    let local = named.filter(|name| hub::is_local(name));
    let found =
        local.filter_map(|name| Some((name.as_str(), hub::resolve_dataset(name, Split::Train, true).ok()?.paths)));
    of_files(found.filter(|(_, paths)| paths.iter().all(|path| path.is_file())), known)
}

/// Files, or several of one dataset, by its name.
///
/// # Errors
/// A file that cannot be read.
pub fn of_files<'a>(files: impl Iterator<Item = (&'a str, Vec<PathBuf>)>, known: &mut Contents) -> Result<Contents> {
    let mut found = Contents::new();
    for (name, paths) in files {
        let hash = match known.get(name) {
            Some(hash) => hash.clone(),
            None => hash_files(&paths)?.chars().take(DIGITS).collect(),
        };
        known.insert(name.to_string(), hash.clone());
        found.insert(name.to_string(), hash);
    }
    Ok(found)
}

//! From what the user names (a folder, a file or a hub id) to something local.
//!
//! `org/name` or `org/name@revision` is a model, or a dataset where data are expected; `org/name@revision:path` is one
//! file of a dataset, or a GGUF file that is a model. Only the files that are needed are fetched, into the cache that Python's huggingface_hub uses
//! too. `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE` and `HF_HUB_DOWNLOAD_TIMEOUT` mean what
//! they mean there.

mod cache;
mod dataset;
mod id;
mod local;
mod model;
mod partial;
mod question;
mod refusal;
mod repo;
mod site;
mod transfer;

pub use dataset::Split;

use crate::checkpoint::{is_gguf, is_gguf_name, vocabulary};
use crate::error::neighbour;
use crate::tokenizer::Tokenizer;
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use cache::RepoCache;
use id::{Kind, RepoId};
use repo::Repo;
use site::Site;
use std::path::{Path, PathBuf};

/// Where a model is on this machine, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Its folder, or its GGUF file.
    pub place: PathBuf,
    /// The folder, or GGUF file, of a tokenizer to use in place of its own.
    pub tokenizer: Option<PathBuf>,
    /// The hub id, if it came from the hub; of a GGUF file with `:FILE.gguf` after it.
    pub id: Option<String>,
    /// The commit, if it came from the hub.
    pub revision: Option<String>,
}

impl Resolved {
    /// The model with the tokenizer of a folder or hub id in place of its own.
    ///
    /// # Errors
    /// As [`resolve`].
    pub fn with_tokenizer(self, id_or_dir: Option<&str>, quiet: bool) -> Result<Self> {
        let found = id_or_dir.map(|id| resolve_parts(id, Parts::Companions, quiet)).transpose()?;
        Ok(Self { tokenizer: found.map(|found| found.place).or(self.tokenizer), ..self })
    }

    /// The folder, or GGUF file, that the tokenizer is in.
    pub fn tokenizer_place(&self) -> &Path {
        self.tokenizer.as_ref().unwrap_or(&self.place)
    }

    /// Whether there is a tokenizer, as far as can be said without a doubt about what it is.
    pub fn has_tokenizer(&self) -> bool {
        let place = self.tokenizer_place();
        if is_gguf(place) { self.load_tokenizer().is_ok() } else { place.join("tokenizer.json").is_file() }
    }

    /// Loads the tokenizer.
    ///
    /// # Errors
    /// As [`Tokenizer::load`]; the tokenizer of another model beside a GGUF file.
    pub fn load_tokenizer(&self) -> Result<Tokenizer> {
        let tokenizer = Tokenizer::load(self.tokenizer_place())?;
        if let Some(other) = &self.tokenizer
            && let Some(vocabulary) = vocabulary(&self.place)?
        {
            tokenizer.check_vocabulary(&vocabulary).with_context(|| {
                format!("the tokenizer of {} is not that of {}", other.display(), self.place.display())
            })?;
        }
        Ok(tokenizer)
    }
}

/// The files of a dataset, in their order, and where they came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedData {
    /// At least one.
    pub paths: Vec<PathBuf>,
    /// As given, or `org/name@commit:path` with the first of the paths.
    pub source: String,
}

impl ResolvedData {
    /// The only file.
    ///
    /// # Errors
    /// Several files.
    pub fn only(self) -> Result<PathBuf> {
        let count = self.paths.len();
        let only = <[PathBuf; 1]>::try_from(self.paths).ok().map(|[only]| only);
        only.ok_or_else(|| invalid!("{} has {count} files, expected one; name one of them", self.source))
    }
}

/// The local place of a model named by folder, GGUF file or hub id (`org/name[@revision]`, with `:FILE.gguf` after it for
/// a file in that format), downloaded if necessary. `quiet` hides progress.
///
/// # Errors
/// Neither what exists nor a hub id; a model that is not on the hub, not in the cache when offline, gated, or
/// without readable weights. Failures: no connection, a download that breaks off or differs from what the hub
/// announced. A later run continues where a broken download stopped.
pub fn resolve(id_or_dir: &str, quiet: bool) -> Result<Resolved> {
    resolve_parts(id_or_dir, Parts::All, quiet)
}

/// As [`resolve`], if only config.json and the tokenizer are needed: weights are not downloaded, unless they are in one
/// file with what is needed.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_without_weights(id_or_dir: &str, quiet: bool) -> Result<Resolved> {
    resolve_parts(id_or_dir, Parts::Companions, quiet)
}

/// How much of a model is needed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parts {
    /// Configuration and tokenizer.
    Companions,
    /// The weights too.
    All,
}

fn resolve_parts(id_or_dir: &str, parts: Parts, quiet: bool) -> Result<Resolved> {
    let dir = Path::new(id_or_dir);
    if dir.is_dir() || is_gguf(dir) {
        return Ok(Resolved { place: dir.to_path_buf(), tokenizer: None, id: None, revision: None });
    }
    ensure_valid!(!dir.exists(), "{id_or_dir} is a file; expected a model folder, a GGUF file (.gguf) or a hub id");
    let (id, file) = match id_or_dir.split_once(':') {
        Some((id, file)) if is_gguf_name(file) => (id, Some(file)),
        _ => (id_or_dir, None),
    };
    let what = if is_gguf_name(id) { "file" } else { "folder" };
    check_spelling(id, what)?;
    let id = RepoId::parse(id)?.filter(|_| what == "folder").ok_or_else(|| {
        invalid!("{id_or_dir}: there is no such {what}, and it is not a hub id (org/name or org/name@revision) either")
    })?;
    let cache = RepoCache::new(&site::cache_dir(), Kind::Model.plural(), &id);
    let tried = || format!("{}: there is no such folder; as a model on the hub at revision {}", id.id(), id.revision);
    let commit = if site::is_offline() {
        cached_model(&cache, &id, file).with_context(tried)?
    } else {
        fetch_model(&cache, &id, file, parts, quiet).with_context(tried)?
    };
    let folder = cache.snapshot(&commit);
    let place = file.map_or(folder.clone(), |file| folder.join(file));
    let name = file.map_or(id.id(), |file| format!("{}:{file}", id.id()));
    Ok(Resolved { place, tokenizer: None, id: Some(name), revision: Some(commit) })
}

/// A model's name with its commit, as [`resolve`] reads it: `org/name@commit`, or `org/name@commit:FILE.gguf`. Without a
/// commit the name of a folder or file, as it is.
pub fn at_revision(id: &str, revision: Option<&str>) -> String {
    match (revision, id.split_once(':')) {
        (None, _) => id.to_string(),
        (Some(commit), Some((id, file))) => format!("{id}@{commit}:{file}"),
        (Some(commit), None) => format!("{id}@{commit}"),
    }
}

/// Refuses what differs from a path on this machine by no more than a typing mistake, before the hub is asked for it. A
/// revision says that the hub is meant.
fn check_spelling(name: &str, what: &str) -> Result<()> {
    if let Some(near) = neighbour(Path::new(name)).filter(|_| !name.contains('@')) {
        let hub = if matches!(RepoId::parse(name), Ok(Some(_))) {
            format!(" (for the one on the hub write {name}@main)")
        } else {
            String::new()
        };
        return Err(invalid!("{name}: there is no such {what}; did you mean {}?{hub}", near.display()));
    }
    Ok(())
}

/// Whether a model or dataset of this name is looked for only on this machine: nothing is downloaded for it.
pub fn is_local(name: &str) -> bool {
    let id = name.split_once(':').map_or(name, |(id, _)| id);
    Path::new(name).exists() || dataset::is_data_file(name) || !matches!(RepoId::parse(id), Ok(Some(_)))
}

/// The local data files named by path or by hub id, downloaded if necessary: a file, a folder, a pattern such as
/// `data/*.jsonl`, `org/name[@revision]` for a dataset with one file for `split`, perhaps in shards, or
/// `org/name[@revision]:path` for any file of it. `quiet` hides progress.
///
/// A path that does not exist is returned as it is, for the reader to refuse, unless it can only be a hub id.
///
/// # Errors
/// As [`resolve`]; several candidate files, with a list of them; a pattern that matches nothing.
pub fn resolve_dataset(id_or_file: &str, split: Split, quiet: bool) -> Result<ResolvedData> {
    let place = Path::new(id_or_file);
    let data = |paths: Vec<PathBuf>| ResolvedData { paths, source: id_or_file.to_string() };
    if place.is_dir() {
        return local::in_folder(place, split).map(data);
    }
    if !place.exists() && local::is_pattern(id_or_file) {
        return local::matching(id_or_file).map(data);
    }
    let local = || Ok(data(vec![place.to_path_buf()]));
    if place.exists() {
        return local();
    }
    let (id, path) = match id_or_file.split_once(':') {
        Some((id, path)) => (id, Some(path)),
        None => (id_or_file, None),
    };
    // `data/train.jsonl` could be an id, but must be a missing file.
    if path.is_none() && dataset::is_data_file(id_or_file) {
        return local();
    }
    let Some(id) = RepoId::parse(id)? else { return local() };
    if path.is_none() {
        check_spelling(id_or_file, "file")?;
    }
    let cache = RepoCache::new(&site::cache_dir(), Kind::Dataset.plural(), &id);
    let tried = || format!("{}: there is no such file; as a dataset on the hub at revision {}", id.id(), id.revision);
    let (commit, files) = if site::is_offline() {
        cached_files(&cache, &id, path, split).with_context(tried)?
    } else {
        fetch_files(&cache, &id, path, split, quiet).with_context(tried)?
    };
    let source = format!("{}@{commit}:{}", id.id(), files.first().map_or("", String::as_str));
    Ok(ResolvedData { paths: files.iter().map(|file| cache.snapshot(&commit).join(file)).collect(), source })
}

/// `file`: of a repository of GGUF files.
fn fetch_model(cache: &RepoCache, id: &RepoId, file: Option<&str>, parts: Parts, quiet: bool) -> Result<String> {
    let site = Site::from_env()?;
    let repo = Repo::new(&site, Kind::Model, id, cache);
    let files = repo.list()?;
    if let Some(file) = file {
        repo.fetch(&files, &[model::gguf(&files, file)?], quiet)?;
        repo.finish(&files)?;
        return Ok(files.commit);
    }
    model::check(&files)?;
    repo.fetch(&files, &model::companions(&files), quiet)?;
    if parts == Parts::All {
        let weights = model::weights(&files, &cache.snapshot(&files.commit))?;
        repo.fetch(&files, &weights, quiet)?;
    }
    repo.finish(&files)?;
    Ok(files.commit)
}

fn fetch_files(
    cache: &RepoCache,
    id: &RepoId,
    path: Option<&str>,
    split: Split,
    quiet: bool,
) -> Result<(String, Vec<String>)> {
    let site = Site::from_env()?;
    let repo = Repo::new(&site, Kind::Dataset, id, cache);
    let files = repo.list()?;
    let paths: Vec<&str> = files.files.keys().map(String::as_str).collect();
    let chosen = dataset::choose(&format!("{}:", id.id()), &paths, path, split)?;
    repo.fetch(&files, &chosen, quiet)?;
    repo.finish(&files)?;
    let chosen = chosen.into_iter().map(String::from).collect();
    Ok((files.commit, chosen))
}

fn cached_commit(cache: &RepoCache, id: &RepoId) -> Result<String> {
    let commit = cache.commit(&id.revision).filter(|commit| cache.snapshot(commit).is_dir());
    commit.ok_or_else(|| invalid!("it is not in the local cache (HF_HUB_OFFLINE is set)"))
}

fn cached_model(cache: &RepoCache, id: &RepoId, file: Option<&str>) -> Result<String> {
    let commit = cached_commit(cache, id)?;
    if let Some(file) = file {
        let is_there = cache.snapshot(&commit).join(file).is_file();
        ensure_valid!(is_there, "{file} is not in the local cache (HF_HUB_OFFLINE is set)");
    }
    Ok(commit)
}

fn cached_files(cache: &RepoCache, id: &RepoId, path: Option<&str>, split: Split) -> Result<(String, Vec<String>)> {
    let commit = cached_commit(cache, id)?;
    let files = cache.files(&commit);
    let paths: Vec<&str> = files.iter().map(String::as_str).collect();
    let chosen = dataset::choose(&format!("{}:", id.id()), &paths, path, split)
        .context("in the local cache (HF_HUB_OFFLINE is set)")?;
    let chosen = chosen.into_iter().map(String::from).collect();
    Ok((commit, chosen))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    #[test]
    fn a_folder_is_used_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let resolved = resolve(dir.path().to_str().unwrap(), true).unwrap();
        assert_eq!(resolved, Resolved { place: dir.path().to_path_buf(), tokenizer: None, id: None, revision: None });
    }

    #[test]
    fn what_is_neither_folder_nor_id_says_so() {
        for name in ["./no/such/folder", "/no/such", "no-such-folder", "a/b/c", "../no-such-folder"] {
            let error = resolve(name, true).unwrap_err();
            assert_eq!(exit_code(&error), 2);
            assert!(error.to_string().contains("no such folder") && error.to_string().contains("hub id"), "{error}");
        }
    }

    #[test]
    fn paths_of_data_files_are_left_alone() {
        for path in ["nowhere.jsonl", "data/nowhere.jsonl", "./a/b", "/a/b.csv", "a/b/c", "Cargo.toml"] {
            let resolved = resolve_dataset(path, Split::Train, true).unwrap();
            assert_eq!(resolved, ResolvedData { paths: vec![path.into()], source: path.into() });
        }
    }
}

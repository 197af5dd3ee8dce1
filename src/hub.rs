//! From what the user names, a folder or a hub id, to a local folder.
//!
//! `org/name` or `org/name@revision` is fetched through the cache that Python's huggingface_hub uses too. `HF_HOME`,
//! `HF_HUB_CACHE`, `HF_TOKEN` and `HF_ENDPOINT` are honoured by the client; `HF_HUB_OFFLINE` is honoured here.

use crate::{ensure_valid, invalid};
use anyhow::Result;
use hf_hub::{HFClient, HFError};
use std::path::{Path, PathBuf};

/// The files of a model repository that are of use here. Never pickles.
const FILES: [&str; 10] = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.*",
    "vocab.json",
    "merges.txt",
];
const DEFAULT_REVISION: &str = "main";

/// A model folder and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub dir: PathBuf,
    /// The hub id, if it came from the hub.
    pub id: Option<String>,
    /// The commit, if it came from the hub.
    pub revision: Option<String>,
}

/// The local folder of a model named by folder or by hub id, downloaded if need be.
///
/// # Errors
/// Neither an existing folder nor a hub id; a model that is not on the hub, not in the cache when offline, or gated.
pub fn resolve(id_or_dir: &str) -> Result<Resolved> {
    let offline = std::env::var("HF_HUB_OFFLINE")
        .is_ok_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"));
    resolve_with(id_or_dir, None, offline)
}

fn resolve_with(id_or_dir: &str, cache: Option<&Path>, offline: bool) -> Result<Resolved> {
    let dir = Path::new(id_or_dir);
    if dir.is_dir() {
        return Ok(Resolved { dir: dir.to_path_buf(), id: None, revision: None });
    }
    ensure_valid!(!dir.exists(), "{id_or_dir} is a file; expected a model folder or a hub id");
    let (id, revision) = id_or_dir.split_once('@').unwrap_or((id_or_dir, DEFAULT_REVISION));
    let (org, name) = split_id(id).ok_or_else(|| {
        invalid!("{id_or_dir}: there is no such folder, and it is not a hub id (org/name or org/name@revision) either")
    })?;
    let mut builder = HFClient::builder();
    if let Some(cache) = cache {
        builder = builder.cache_dir(cache);
    }
    let client = builder.build_sync()?;
    let fetched = client
        .model(org, name)
        .snapshot_download()
        .revision(revision)
        .allow_patterns(FILES.map(String::from).to_vec())
        .local_files_only(offline)
        .send();
    let dir = fetched.map_err(|error| explain(id, revision, offline, error))?;
    let commit = dir.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(Resolved { dir, id: Some(id.to_string()), revision: commit })
}

/// `org/name`, if that is what it looks like.
fn split_id(id: &str) -> Option<(&str, &str)> {
    let (org, name) = id.split_once('/')?;
    let valid = |part: &str| {
        let mut characters = part.chars();
        characters.next().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_')
            && characters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    (valid(org) && valid(name)).then_some((org, name))
}

fn explain(id: &str, revision: &str, offline: bool, error: HFError) -> anyhow::Error {
    let tried = format!("{id}: there is no such folder, and as a hub id at revision {revision}");
    match error {
        HFError::LocalEntryNotFound { .. } if offline => {
            invalid!("{tried} it is not in the local cache (HF_HUB_OFFLINE is set)")
        }
        HFError::RepoNotFound { .. } => {
            invalid!("{tried} it is not on the hub, or private (set HF_TOKEN to an account with access)")
        }
        HFError::RevisionNotFound { .. } => invalid!("{tried} the hub knows the model but not the revision"),
        HFError::AuthRequired { .. } | HFError::Forbidden { .. } => invalid!(
            "{tried} it needs permission: accept its licence on its page on the hub, then set HF_TOKEN ({error})"
        ),
        other => anyhow::Error::new(other)
            .context(format!("{tried} it could not be fetched (if it is in the cache, HF_HUB_OFFLINE=1 uses that)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    #[test]
    fn a_folder_is_used_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let resolved = resolve(dir.path().to_str().unwrap()).unwrap();
        assert_eq!(resolved, Resolved { dir: dir.path().to_path_buf(), id: None, revision: None });
    }

    #[test]
    fn what_is_neither_folder_nor_id_says_so() {
        for name in ["./no/such/folder", "/no/such", "folder", "a/b/c", "../x"] {
            let error = resolve_with(name, None, true).unwrap_err();
            assert_eq!(exit_code(&error), 2);
            assert!(error.to_string().contains("no such folder") && error.to_string().contains("hub id"), "{error}");
        }
    }

    #[test]
    fn offline_finds_what_python_cached() {
        let cache = tempfile::tempdir().unwrap();
        let repo = cache.path().join("models--org--name");
        let commit = "0123456789abcdef0123456789abcdef01234567";
        std::fs::create_dir_all(repo.join("snapshots").join(commit)).unwrap();
        std::fs::create_dir_all(repo.join("refs")).unwrap();
        std::fs::write(repo.join("refs/main"), commit).unwrap();
        for name in ["org/name".to_string(), format!("org/name@{commit}"), "org/name@main".to_string()] {
            let resolved = resolve_with(&name, Some(cache.path()), true).unwrap();
            assert_eq!(resolved.dir, repo.join("snapshots").join(commit));
            assert_eq!(resolved.id.as_deref(), Some("org/name"));
            assert_eq!(resolved.revision.as_deref(), Some(commit));
        }
        let error = resolve_with("org/other", Some(cache.path()), true).unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains("not in the local cache"), "{error}");
    }
}

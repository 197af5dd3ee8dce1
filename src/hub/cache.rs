//! One repository in the cache that Python's huggingface_hub uses too:
//!
//! ```text
//! models--org--name/              or datasets--org--name/
//!   refs/REVISION                 a file that holds the commit
//!   blobs/ETAG                    content; ETAG.incomplete while it is being fetched
//!   snapshots/COMMIT/PATH         a link to a blob
//! .locks/models--org--name/ETAG.lock
//! ```

use super::id::RepoId;
use crate::checkpoint::write_atomic;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The cache folder of a repository. Names and paths passed to it must be safe to join.
pub(super) struct RepoCache {
    dir: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    /// `kind`: `models` or `datasets`.
    pub fn new(cache: &Path, kind: &str, id: &RepoId) -> Self {
        let folder = format!("{kind}--{}--{}", id.org, id.name);
        Self { locks: cache.join(".locks").join(&folder), dir: cache.join(folder) }
    }

    /// The commit that a revision pointed to when it was last fetched.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if revision.len() == 40 && revision.chars().all(|c| c.is_ascii_hexdigit()) {
            return Some(revision.to_string());
        }
        let text = std::fs::read_to_string(self.dir.join("refs").join(revision)).ok()?;
        Some(text.trim().to_string()).filter(|commit| super::id::is_safe_name(commit))
    }

    pub fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        write_atomic(&self.dir.join("refs").join(revision), |file| Ok(file.write_all(commit.as_bytes())?))
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir.join("snapshots").join(commit)
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.dir.join("blobs").join(etag)
    }

    /// Waits until no other process is fetching this blob; the lock is held as long as the returned file.
    pub fn lock(&self, etag: &str) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        let locking = || format!("locking {}", path.display());
        std::fs::create_dir_all(&self.locks).with_context(locking)?;
        let file = File::create(&path).with_context(locking)?;
        file.lock().with_context(locking)?;
        Ok(file)
    }

    /// Links `path` of a snapshot to a blob.
    pub fn link(&self, commit: &str, path: &str, etag: &str) -> Result<()> {
        let pointer = self.snapshot(commit).join(path);
        let linking = || format!("linking {}", pointer.display());
        let parent = pointer.parent().unwrap_or(&self.dir);
        std::fs::create_dir_all(parent).with_context(linking)?;
        // From snapshots/COMMIT/a/b up to the repository's folder: two levels plus one for each folder in the path.
        let up = "../".repeat(2 + path.matches('/').count());
        // Renamed into place, so that a reader never finds the name missing.
        let staged = tempfile::Builder::new().prefix(".asft-").tempdir_in(parent).with_context(linking)?;
        let link = staged.path().join("link");
        std::os::unix::fs::symlink(format!("{up}blobs/{etag}"), &link).with_context(linking)?;
        std::fs::rename(&link, &pointer).with_context(linking)
    }

    /// Paths of the files that a snapshot holds, relative to it, sorted.
    pub fn files(&self, commit: &str) -> Vec<String> {
        let root = self.snapshot(commit);
        let (mut found, mut folders) = (vec![], vec![root.clone()]);
        while let Some(folder) = folders.pop() {
            for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
                if path.is_dir() {
                    folders.push(path);
                } else if let (true, Ok(inner)) = (path.is_file(), path.strip_prefix(&root)) {
                    found.push(inner.to_string_lossy().into_owned());
                }
            }
        }
        found.sort();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_blobs_at_any_depth() {
        let dir = tempfile::tempdir().unwrap();
        let id = RepoId::parse("org/name").unwrap().unwrap();
        let cache = RepoCache::new(dir.path(), "datasets", &id);
        let blob = cache.blob("e1");
        write_atomic(&blob, |file| Ok(file.write_all(b"text")?)).unwrap();
        for path in ["a.json", "x/y/a.json"] {
            cache.link("c0", path, "e1").unwrap();
            cache.link("c0", path, "e1").unwrap();
            assert_eq!(std::fs::read(cache.snapshot("c0").join(path)).unwrap(), b"text");
        }
        assert_eq!(cache.files("c0"), ["a.json", "x/y/a.json"]);
        assert_eq!(cache.commit("refs/pr/1"), None);
        cache.set_commit("refs/pr/1", "c0").unwrap();
        assert_eq!(cache.commit("refs/pr/1").as_deref(), Some("c0"));
    }
}

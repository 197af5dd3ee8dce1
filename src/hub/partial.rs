//! A blob being fetched: `ETAG.incomplete`, appended to until it is complete, and its hash.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Bytes hashed at a time when an earlier run left a part.
const CHUNK_BYTES: usize = 1 << 20;

/// The part of a blob fetched so far.
pub(super) struct Partial {
    path: PathBuf,
    file: File,
    len: u64,
    hasher: Sha256,
}

impl Partial {
    /// Opens what an earlier run left beside `blob`, or starts anew.
    pub fn open(blob: &Path) -> Result<Self> {
        let mut name = blob.as_os_str().to_owned();
        name.push(".incomplete");
        let path = PathBuf::from(name);
        let opening = || format!("opening {}", path.display());
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(opening)?;
        }
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path).with_context(opening)?;
        let (mut len, mut hasher, mut buffer) = (0, Sha256::new(), vec![0; CHUNK_BYTES]);
        loop {
            match file.read(&mut buffer).with_context(opening)? {
                0 => break,
                read => {
                    hasher.update(buffer.get(..read).unwrap_or_default());
                    len += read as u64;
                }
            }
        }
        Ok(Self { path, file, len, hasher })
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).with_context(|| format!("writing {}", self.path.display()))?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Starts anew.
    pub fn clear(&mut self) -> Result<()> {
        self.file.set_len(0).with_context(|| format!("emptying {}", self.path.display()))?;
        (self.len, self.hasher) = (0, Sha256::new());
        Ok(())
    }

    /// SHA-256 of the bytes so far, in hex.
    pub fn sha256(&self) -> String {
        self.hasher.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Gives the complete blob its name.
    pub fn finish(self, blob: &Path) -> Result<()> {
        self.file.sync_all().with_context(|| format!("writing {}", self.path.display()))?;
        std::fs::rename(&self.path, blob).with_context(|| format!("moving {} into place", self.path.display()))
    }

    /// Leaves nothing behind.
    pub fn discard(self) {
        let _best_effort = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_continued_and_hashed_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let blob = dir.path().join("blobs/etag");
        let mut partial = Partial::open(&blob).unwrap();
        partial.append(b"a").unwrap();
        drop(partial);
        let mut partial = Partial::open(&blob).unwrap();
        assert_eq!(partial.len(), 1);
        partial.append(b"bc").unwrap();
        assert_eq!(partial.sha256(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        partial.clear().unwrap();
        partial.append(b"abc").unwrap();
        assert_eq!(partial.sha256(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(!blob.exists());
        partial.finish(&blob).unwrap();
        assert_eq!(std::fs::read(&blob).unwrap(), b"abc");
        let partial = Partial::open(&blob).unwrap();
        partial.discard();
        assert_eq!(std::fs::read_dir(dir.path().join("blobs")).unwrap().count(), 1);
    }
}

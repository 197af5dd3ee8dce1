//! A file of samples while it is made. Whoever holds its lock makes it; others wait, where the file system has locks. What a
//! killed process leaves behind is begun anew by the next.

use crate::checkpoint::mode;
use crate::console::log;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The ending of its name.
pub const ENDING: &str = "partial";

/// An empty file, beside the one that it becomes; removed unless it is published.
pub struct Partial {
    path: PathBuf,
    pub file: File,
}

impl Partial {
    /// For the file of samples that is to be at `samples`.
    ///
    /// # Errors
    /// The folder cannot be made, or written in.
    pub fn begin(samples: &Path) -> std::io::Result<Self> {
        let path = samples.with_extension(ENDING);
        if let Some(folder) = samples.parent() {
            std::fs::create_dir_all(folder)?;
        }
        loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            let locked = match file.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    let text = format!("another process makes {}: waiting for it", samples.display());
                    log::info(&text, json!({"cache": samples}));
                    file.lock()
                }
                Err(TryLockError::Error(error)) => {
                    // No locks here at all, so nobody has one on it.
                    let _it_has_no_use = std::fs::remove_file(&path);
                    Err(error)
                }
                Ok(()) => Ok(()),
            };
            if locked.is_err() {
                return Self::unlocked(&path);
            }
            // Whoever had it may have renamed or removed it: then it is another's, or nobody's.
            let partial = Self { path: path.clone(), file };
            if partial.is_in_place() {
                partial.file.set_len(0)?;
                return Ok(partial);
            }
        }
    }

    /// With a name of its own: without locks, others may be at work on theirs.
    fn unlocked(path: &Path) -> std::io::Result<Self> {
        let (stem, folder) = (path.file_stem().unwrap_or_default(), path.parent().unwrap_or(Path::new(".")));
        let suffix = format!(".{ENDING}");
        let builder = &mut tempfile::Builder::new();
        let file = builder.prefix(stem).suffix(&suffix).permissions(mode()).tempfile_in(folder)?;
        let (file, path) = file.keep().map_err(|error| error.error)?;
        Ok(Self { path, file })
    }

    /// Gives it its final name.
    ///
    /// # Errors
    /// It cannot be written; it is not there any more.
    pub fn publish(&self, samples: &Path) -> Result<()> {
        self.file.sync_all()?;
        ensure!(self.is_in_place(), "{} was removed while it was written", self.path.display());
        std::fs::rename(&self.path, samples).with_context(|| format!("renaming {}", self.path.display()))
    }

    /// Whether the file at the path is this one.
    fn is_in_place(&self) -> bool {
        let id = |found: std::fs::Metadata| (found.dev(), found.ino());
        let (here, there) = (self.file.metadata().map(id), std::fs::metadata(&self.path).map(id));
        matches!((here, there), (Ok(here), Ok(there)) if here == there)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.is_in_place() {
            let _it_is_gone = std::fs::remove_file(&self.path);
        }
    }
}

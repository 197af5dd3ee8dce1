//! The files that a source of samples consists of.

use crate::hub::ResolvedData;
use crate::report::hash_files;
use anyhow::Result;
use std::cell::OnceCell;
use std::path::Path;
use std::time::SystemTime;

/// The files of a source, and the hash of their content, which is computed once.
pub struct Files {
    pub data: ResolvedData,
    hash: OnceCell<String>,
}

impl Files {
    pub fn new(data: ResolvedData) -> Self {
        Self { data, hash: OnceCell::new() }
    }

    /// # Errors
    /// A file cannot be read.
    pub fn hash(&self) -> Result<&str> {
        if self.hash.get().is_none() {
            let _first = self.hash.set(hash_files(&self.data.paths)?);
        }
        Ok(self.hash.get().map_or("", String::as_str))
    }

    /// Of a single file the path says more than a hub id.
    pub fn name(&self) -> &Path {
        match self.data.paths.as_slice() {
            [only] => only,
            _ => Path::new(&self.data.source),
        }
    }

    /// Bytes of each file, and when it was written; none of files that are not there.
    pub fn state(&self) -> Vec<(u64, Option<SystemTime>)> {
        let found = self.data.paths.iter().filter_map(|path| path.metadata().ok());
        found.map(|metadata| (metadata.len(), metadata.modified().ok())).collect()
    }
}

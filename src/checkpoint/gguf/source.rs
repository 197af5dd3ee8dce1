//! Numbers and strings read from the beginning of a file, within limits.

use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// The most that a header may have, in bytes: vocabularies of a quarter of a million tokens take a tenth of it.
const MAX_HEADER_BYTES: u64 = 128 << 20;

/// A file that is read from its beginning.
pub struct Source<'a> {
    reader: BufReader<File>,
    path: &'a Path,
    /// Bytes read so far.
    position: u64,
    /// Where reading must end: of the file, or of what a header may be.
    limit: u64,
    pub file_bytes: u64,
}

impl<'a> Source<'a> {
    pub fn open(path: &'a Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| invalid!("cannot open {}: {e}", path.display()))?;
        let file_bytes = file.metadata().with_context(|| format!("reading {}", path.display()))?.len();
        let limit = file_bytes.min(MAX_HEADER_BYTES);
        Ok(Self { reader: BufReader::new(file), path, position: 0, limit, file_bytes })
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    /// Refuses a length that the header cannot have left; `what` is being read.
    fn check_left(&self, bytes: u64, what: &str) -> Result<()> {
        let left = self.limit - self.position;
        ensure_valid!(
            bytes <= left || self.limit == self.file_bytes,
            "{what} would make the header longer than {} MiB",
            MAX_HEADER_BYTES >> 20
        );
        ensure_valid!(bytes <= left, "{what} needs {bytes} bytes, and {left} are left in the file (truncated?)");
        Ok(())
    }

    pub fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        self.check_left(N as u64, what)?;
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub fn u32(&mut self, what: &str) -> Result<u32> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, what: &str) -> Result<u64> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    /// `count` bytes.
    pub fn vec(&mut self, count: u64, what: &str) -> Result<Vec<u8>> {
        self.check_left(count, what)?;
        let mut bytes = vec![0; usize::try_from(count)?];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// A length, and as many bytes of UTF-8.
    pub fn string(&mut self, what: &str) -> Result<String> {
        let count = self.u64(what)?;
        let bytes = self.vec(count, what)?;
        String::from_utf8(bytes).map_err(|_| invalid!("{what} is not UTF-8"))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.reader.read_exact(bytes).with_context(|| format!("reading {}", self.path.display()))?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}

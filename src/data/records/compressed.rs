//! Files compressed with gzip or zstd, known by how they begin.

use crate::invalid;
use anyhow::Result;
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const BUFFER_BYTES: usize = 256 << 10;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Endings that say how a file is compressed, not what it holds.
const ENDINGS: [&str; 3] = [".gz", ".zst", ".zstd"];

/// The ending of a file's name that says what it holds, in lower case: `jsonl` of `data.JSONL.gz`.
pub fn extension(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
    let name = ENDINGS.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(&name);
    name.rsplit_once('.').map(|(_, extension)| extension.to_string())
}

/// A file's content, uncompressed as it is read.
pub struct Content {
    path: PathBuf,
    /// How it is compressed, if it is.
    kind: Option<&'static str>,
    reader: Box<dyn Read>,
    /// Bytes of content read so far.
    read: u64,
}

impl Content {
    /// `taken`: counts the bytes of the file that were read.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn open(path: &Path, taken: &Arc<AtomicU64>) -> Result<Self> {
        let unreadable = |e| invalid!("cannot read dataset {}: {e}", path.display());
        let mut file = File::open(path).map_err(unreadable)?;
        let mut head = vec![];
        Read::by_ref(&mut file).take(ZSTD.len() as u64).read_to_end(&mut head).map_err(unreadable)?;
        file.rewind().map_err(unreadable)?;
        let file = BufReader::with_capacity(BUFFER_BYTES, Counted { file, taken: Arc::clone(taken) });
        let (kind, reader): (Option<&str>, Box<dyn Read>) = if head.starts_with(&GZIP) {
            (Some("gzip"), Box::new(MultiGzDecoder::new(file)))
        } else if head.starts_with(&ZSTD) {
            let decoder = zstd::Decoder::with_buffer(file);
            let decoder = decoder.map_err(|e| invalid!("{}: cannot be read as zstd: {e}", path.display()))?;
            (Some("zstd"), Box::new(decoder))
        } else {
            (None, Box::new(file))
        };
        Ok(Self { path: path.to_path_buf(), kind, reader, read: 0 })
    }

    /// Adds up to `limit` bytes to `bytes`; fewer only at the end.
    ///
    /// # Errors
    /// The file cannot be read; compressed data that is damaged or cut short.
    pub fn read(&mut self, bytes: &mut Vec<u8>, limit: usize) -> Result<()> {
        let before = bytes.len();
        let result = Read::by_ref(&mut self.reader).take(limit as u64).read_to_end(bytes);
        self.read += (bytes.len() - before) as u64;
        let (shown, read) = (self.path.display(), self.read);
        result.map(|_| ()).map_err(|e| match self.kind {
            Some(kind) => {
                invalid!("{shown}: its {kind} data is damaged after {read} bytes of content: {e}; fetch it again")
            }
            None => invalid!("cannot read dataset {shown}: {e}"),
        })
    }
}

/// A file that counts what is read of it.
struct Counted {
    file: File,
    taken: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.taken.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = GzEncoder::new(vec![], Compression::default());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn compressed_files_are_read_as_what_they_hold() {
        let dir = tempfile::tempdir().unwrap();
        let read = |content: &[u8]| {
            let path = dir.path().join("data");
            std::fs::write(&path, content).unwrap();
            let mut bytes = vec![];
            let content = Content::open(&path, &Arc::default());
            let read = content.and_then(|mut content| content.read(&mut bytes, usize::MAX));
            read.map(|()| bytes).map_err(|e| e.to_string())
        };
        assert_eq!(read(b"plain").unwrap(), b"plain");
        // Several members, as `cat a.gz b.gz` makes them.
        assert_eq!(read(&[gzip("one\n"), gzip("two\n")].concat()).unwrap(), b"one\ntwo\n");
        assert_eq!(read(&zstd::encode_all(&b"three"[..], 3).unwrap()).unwrap(), b"three");
        let text = "line\n".repeat(5000);
        let whole = gzip(&text);
        let error = read(&whole[..whole.len() - 9]).unwrap_err();
        assert!(error.contains("data: its gzip data is damaged after ") && error.contains("fetch it again"), "{error}");
        let mut damaged = zstd::encode_all(text.as_bytes(), 3).unwrap();
        damaged.truncate(damaged.len() / 2);
        assert!(read(&damaged).unwrap_err().contains("its zstd data is damaged"));
    }

    #[test]
    fn the_name_says_what_is_inside() {
        let of = |name: &str| extension(Path::new(name));
        assert_eq!(of("a/b.CSV.gz").as_deref(), Some("csv"));
        assert_eq!(of("b.jsonl.zst").as_deref(), Some("jsonl"));
        assert_eq!(of("b.parquet").as_deref(), Some("parquet"));
        assert_eq!(of("b"), None);
    }
}

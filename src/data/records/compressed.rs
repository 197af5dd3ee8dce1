//! Files compressed with gzip or zstd, known by how they begin.

use crate::invalid;
use anyhow::Result;
use flate2::read::MultiGzDecoder;
use std::io::Read;
use std::path::Path;

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

/// The bytes of a file, uncompressed.
///
/// # Errors
/// A file that cannot be read; compressed data that is damaged or cut short.
pub fn bytes(path: &Path) -> Result<Vec<u8>> {
    let shown = path.display();
    let bytes = std::fs::read(path).map_err(|e| invalid!("cannot read dataset {shown}: {e}"))?;
    let (kind, decoder): (&str, Box<dyn Read + '_>) = if bytes.starts_with(&GZIP) {
        ("gzip", Box::new(MultiGzDecoder::new(bytes.as_slice())))
    } else if bytes.starts_with(&ZSTD) {
        let decoder = zstd::Decoder::with_buffer(bytes.as_slice());
        ("zstd", Box::new(decoder.map_err(|e| invalid!("{shown}: cannot be read as zstd: {e}"))?))
    } else {
        return Ok(bytes);
    };
    uncompressed(decoder).map_err(|(e, read)| {
        invalid!("{shown}: its {kind} data is damaged after {read} bytes of content: {e}; fetch it again")
    })
}

/// All that a decoder gives, or the error and how many bytes came before it.
fn uncompressed(mut decoder: Box<dyn Read + '_>) -> Result<Vec<u8>, (std::io::Error, usize)> {
    let mut whole = vec![];
    match decoder.read_to_end(&mut whole) {
        Ok(_) => Ok(whole),
        Err(error) => Err((error, whole.len())),
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
            bytes(&path).map_err(|e| e.to_string())
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

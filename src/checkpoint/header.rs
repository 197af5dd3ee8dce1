//! Safetensors headers.

use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use safetensors::tensor::Metadata;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Largest header accepted, in bytes (the format's own limit).
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Reads and checks a safetensors header: returns where the data start and where the tensors are.
pub fn read_header(file: &mut File, path: &Path) -> Result<(u64, Metadata)> {
    let corrupt = |why: String| invalid!("{} is not a usable safetensors file: {why}", path.display());
    let size = file.metadata().with_context(|| format!("reading {}", path.display()))?.len();
    ensure_valid!(size >= 8, "{} is not a usable safetensors file: it has only {size} bytes", path.display());
    let mut length = [0u8; 8];
    file.read_exact(&mut length).with_context(|| format!("reading {}", path.display()))?;
    let header = u64::from_le_bytes(length);
    if header > MAX_HEADER_BYTES || header + 8 > size {
        return Err(corrupt(format!("it claims a header of {header} bytes in a file of {size}")));
    }
    let mut buffer = vec![0u8; header as usize];
    file.read_exact(&mut buffer).with_context(|| format!("reading {}", path.display()))?;
    // `Metadata` itself checks that shapes, types and offsets agree and leave no gap.
    let metadata: Metadata = serde_json::from_slice(&buffer).map_err(|e| corrupt(e.to_string()))?;
    // It keeps the last of two tensors of one name; other readers keep the first.
    serde_json::from_slice::<Distinct>(&buffer).map_err(|e| corrupt(e.to_string()))?;
    let expected = 8 + header + metadata.data_len() as u64;
    if expected != size {
        return Err(corrupt(format!("its header describes {expected} bytes, the file has {size} (truncated?)")));
    }
    Ok((8 + header, metadata))
}

/// A JSON object in which no key occurs twice.
struct Distinct;

impl<'de> Deserialize<'de> for Distinct {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Distinct;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Distinct, A::Error> {
                let mut seen = HashSet::new();
                while let Some((key, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
                    if let Some(twice) = seen.replace(key) {
                        return Err(A::Error::custom(format!("{twice} stands twice in its header")));
                    }
                }
                Ok(Distinct)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

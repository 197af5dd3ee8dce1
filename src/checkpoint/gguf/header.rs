//! A GGUF file's header: metadata by key, and what tensors there are where.

use super::source::Source;
use super::value::Value;
use crate::quant::ggml::GgmlType;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

pub const MAGIC: &[u8; 4] = b"GGUF";
/// ggml's own limit.
const MAX_DIMENSIONS: u32 = 4;
/// Where tensors start, unless the metadata say otherwise: at a multiple of this.
pub const ALIGNMENT: u64 = 32;

/// What a file says about one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub name: String,
    /// Row-major: rows are the last dimension.
    pub shape: Vec<usize>,
    pub kind: GgmlType,
    /// Absolute byte range in the file.
    pub start: u64,
    pub end: u64,
}

/// What a file says about itself.
pub struct Header {
    pub path: PathBuf,
    pub metadata: BTreeMap<String, Value>,
    /// In the order of the file.
    pub entries: Vec<Entry>,
}

impl Header {
    /// Reads and checks a file's header.
    ///
    /// # Errors
    /// A file that is no GGUF file, is truncated or damaged, or holds a type that cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let read = || {
            let mut source = Source::open(path)?;
            let counts = preamble(&mut source)?;
            let metadata = metadata(&mut source, counts.1)?;
            let entries = entries(&mut source, counts.0, &metadata)?;
            Ok(Self { path: path.to_path_buf(), metadata, entries })
        };
        read().map_err(|e: anyhow::Error| e.context(format!("{} is not a usable GGUF file", path.display())))
    }

    /// The value of a key, if it is a text.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Tokens by their ids.
    pub fn into_tokens(mut self) -> Option<Vec<String>> {
        match self.metadata.remove("tokenizer.ggml.tokens") {
            Some(Value::Texts(tokens)) => Some(tokens),
            _ => None,
        }
    }

    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }
}

/// The counts of tensors and of metadata.
fn preamble(source: &mut Source) -> Result<(u64, u64)> {
    let magic = source.bytes("the file's mark")?;
    ensure_valid!(&magic == MAGIC, "it does not begin with GGUF");
    let version = source.u32("the version")?;
    ensure_valid!(
        !matches!(version.swap_bytes(), 1..=3),
        "it is big-endian; convert it with gguf-py's gguf_convert_endian"
    );
    ensure_valid!(matches!(version, 2 | 3), "it has version {version}; versions 2 and 3 are read");
    Ok((source.u64("the count of tensors")?, source.u64("the count of metadata")?))
}

fn metadata(source: &mut Source, count: u64) -> Result<BTreeMap<String, Value>> {
    let mut metadata = BTreeMap::new();
    for number in 0..count {
        let key = source.string(&format!("metadata key {number} of {count}"))?;
        let value = Value::read(source, &key)?;
        ensure_valid!(!metadata.contains_key(&key), "the metadata have {key} twice");
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn entries(source: &mut Source, count: u64, metadata: &BTreeMap<String, Value>) -> Result<Vec<Entry>> {
    let (mut entries, mut names) = (vec![], HashSet::new());
    for number in 0..count {
        let name = source.string(&format!("the name of tensor {number} of {count}"))?;
        let entry = entry(source, name.clone()).map_err(|e| e.context(format!("tensor {name}")))?;
        ensure_valid!(names.insert(name), "tensor {} stands there twice", entry.name);
        entries.push(entry);
    }
    let alignment = match metadata.get("general.alignment") {
        None => ALIGNMENT,
        Some(Value::Whole(bytes)) if bytes.is_power_of_two() && *bytes <= 1 << 20 => *bytes,
        Some(other) => return Err(invalid!("general.alignment is {other:?}, expected a power of two")),
    };
    place(&mut entries, source.position().next_multiple_of(alignment), alignment, source.file_bytes)?;
    Ok(entries)
}

/// One tensor, its range still relative to the data.
fn entry(source: &mut Source, name: String) -> Result<Entry> {
    let dimensions = source.u32("the number of dimensions")?;
    ensure_valid!(
        (1..=MAX_DIMENSIONS).contains(&dimensions),
        "it has {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}"
    );
    let mut shape = vec![];
    for _ in 0..dimensions {
        let size = source.u64("a dimension")?;
        ensure_valid!(size > 0, "a dimension is 0");
        shape.push(usize::try_from(size).map_err(|_| invalid!("a dimension is {size}"))?);
    }
    shape.reverse();
    let code = source.u32("the type")?;
    let kind = GgmlType::from_code(code).ok_or_else(|| invalid!("it has the type {}", unknown(code)))?;
    let offset = source.u64("the offset")?;
    let row = shape.last().copied().unwrap_or(0);
    ensure_valid!(
        row.is_multiple_of(kind.block_len()),
        "its rows of {row} values are not whole blocks of {}, which have {}",
        kind.name(),
        kind.block_len()
    );
    let elements = shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size as u64));
    let bytes = elements.and_then(|n| (n / kind.block_len() as u64).checked_mul(kind.block_bytes() as u64));
    let end = bytes.and_then(|bytes| offset.checked_add(bytes));
    let end = end.ok_or_else(|| invalid!("its shape {shape:?} at offset {offset} is beyond any file"))?;
    Ok(Entry { name, shape, kind, start: offset, end })
}

/// A type that cannot be read, and what to do about it.
fn unknown(code: u32) -> String {
    let name = match code {
        16..=23 | 29 => "an i-quant (IQ...)",
        34 | 35 => "a ternary type (TQ...)",
        39 => "MXFP4",
        40 => "NVFP4",
        24..=28 => "an integer or f64",
        _ => "unknown",
    };
    let read = GgmlType::ALL.map(GgmlType::name).join(", ");
    format!("{code} ({name}); the types {read} can be read: take a file of such a type")
}

/// Makes the ranges absolute, and checks that they lie in the file and apart.
fn place(entries: &mut [Entry], data: u64, alignment: u64, file_bytes: u64) -> Result<()> {
    for entry in entries.iter_mut() {
        let Entry { name, start, end, .. } = entry;
        ensure_valid!(
            start.is_multiple_of(alignment),
            "tensor {name} is at offset {start}, which is no multiple of the alignment, {alignment}"
        );
        let absolute = data.checked_add(*end).filter(|absolute| *absolute <= file_bytes);
        ensure_valid!(
            absolute.is_some(),
            "tensor {name} ends at byte {end} of the data, which start at {data} of {file_bytes} bytes (truncated?)"
        );
        (*start, *end) = (data + *start, absolute.unwrap_or_default());
    }
    let mut order: Vec<&Entry> = entries.iter().collect();
    order.sort_by_key(|entry| entry.start);
    for pair in order.windows(2) {
        if let [one, other] = pair {
            ensure_valid!(one.end <= other.start, "tensors {} and {} overlap", one.name, other.name);
        }
    }
    Ok(())
}

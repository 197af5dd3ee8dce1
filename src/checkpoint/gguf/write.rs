//! GGUF files written: version 3, little-endian, one tensor in memory at a time.

use super::header::{ALIGNMENT, MAGIC};
use super::value::code;
use crate::checkpoint::write_atomic;
use crate::quant::ggml::GgmlType;
use anyhow::{Result, ensure};
use std::io::Write;
use std::path::Path;

/// A value of the metadata, in the type that readers expect of its key.
#[derive(Clone, Debug, PartialEq)]
pub enum Written {
    Text(String),
    Texts(Vec<String>),
    Whole(u32),
    Signed(Vec<i32>),
    Float(f32),
    Flag(bool),
}

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub name: String,
    /// Row-major: rows are the last dimension.
    pub shape: Vec<usize>,
    pub kind: GgmlType,
}

impl Planned {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() / self.kind.block_len() * self.kind.block_bytes()
    }
}

/// Writes the file at once or not at all. `blocks` gives a tensor's values, which are then written as they are.
///
/// # Errors
/// What `blocks` refuses, or a failed write.
pub fn write(
    path: &Path,
    metadata: &[(String, Written)],
    tensors: &[Planned],
    mut blocks: impl FnMut(&Planned) -> Result<Vec<u8>>,
) -> Result<()> {
    let header = header(metadata, tensors);
    write_atomic(path, |file| {
        file.write_all(&header)?;
        for tensor in tensors {
            let mut bytes = blocks(tensor)?;
            ensure!(bytes.len() == tensor.bytes(), "{} has {} bytes, not {}", tensor.name, bytes.len(), tensor.bytes());
            pad(&mut bytes);
            file.write_all(&bytes)?;
        }
        Ok(())
    })
}

fn header(metadata: &[(String, Written)], tensors: &[Planned]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        string(&mut out, key);
        match value {
            Written::Text(text) => {
                out.extend(code::STRING.to_le_bytes());
                string(&mut out, text);
            }
            Written::Texts(texts) => {
                array(&mut out, code::STRING, texts.len());
                texts.iter().for_each(|text| string(&mut out, text));
            }
            Written::Signed(numbers) => {
                array(&mut out, code::I32, numbers.len());
                out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            }
            Written::Flag(flag) => {
                out.extend(code::BOOL.to_le_bytes());
                out.push(u8::from(*flag));
            }
            Written::Whole(number) => out.extend([code::U32, *number].iter().flat_map(|n| n.to_le_bytes())),
            Written::Float(number) => {
                out.extend(code::F32.to_le_bytes());
                out.extend(number.to_le_bytes());
            }
        }
    }
    let mut offset = 0u64;
    for tensor in tensors {
        string(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        out.extend(tensor.shape.iter().rev().flat_map(|size| (*size as u64).to_le_bytes()));
        out.extend(tensor.kind.code().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += (tensor.bytes() as u64).next_multiple_of(ALIGNMENT);
    }
    pad(&mut out);
    out
}

fn array(out: &mut Vec<u8>, kind: u32, count: usize) {
    out.extend(code::ARRAY.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((count as u64).to_le_bytes());
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
}

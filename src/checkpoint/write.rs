//! Writing safetensors: to a temporary name in the target folder, synced, then renamed.

use super::staging::{check_writable_file, existing, is_stream, parent, write_atomic};
use super::stored::READ_CHUNK_BYTES;
use crate::ranks::Ranks;
use anyhow::{Context, Result};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A safetensors file written tensor by tensor, for outputs larger than memory.
///
/// The format needs every size ahead of the data, so the data first go to an unnamed spill file on the same disk. No
/// folder is created before the file is finished. The file's bytes do not depend on the order in which tensors were
/// added, or on which rank added them.
pub struct StreamWriter {
    path: PathBuf,
    spill: File,
    /// By name.
    tensors: BTreeMap<String, Spilled>,
    /// Length of the spill file, in bytes.
    length: u64,
}

/// An f32 tensor in the spill file.
#[derive(Serialize, Deserialize)]
struct Spilled {
    shape: Vec<usize>,
    start: u64,
}

impl Spilled {
    fn bytes(&self) -> u64 {
        4 * self.shape.iter().product::<usize>() as u64
    }
}

impl StreamWriter {
    pub fn create(path: &Path) -> Result<Self> {
        check_writable_file(path)?;
        let temporary = std::env::temp_dir();
        let place = if is_stream(path) { temporary.as_path() } else { existing(parent(path)) };
        let spill = tempfile::tempfile_in(place).with_context(|| format!("writing in {}", place.display()))?;
        Ok(Self { path: path.to_path_buf(), spill, tensors: BTreeMap::new(), length: 0 })
    }

    /// Appends an f32 tensor.
    pub fn add_f32(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Result<()> {
        anyhow::ensure!(values.len() == shape.iter().product::<usize>(), "{name}: {shape:?} has other data");
        let mut buffer = Vec::with_capacity(READ_CHUNK_BYTES);
        for chunk in values.chunks(READ_CHUNK_BYTES / 4) {
            buffer.clear();
            buffer.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
            self.spill.write_all(&buffer).with_context(|| format!("writing {}", self.path.display()))?;
        }
        self.tensors.insert(name.to_string(), Spilled { shape: shape.to_vec(), start: self.length });
        self.length += values.len() as u64 * 4;
        Ok(())
    }

    /// Collects what the ranks have added on the first rank, which finishes the file.
    pub fn gather(&mut self, ranks: Ranks) -> Result<()> {
        let gathering = || format!("gathering {}", self.path.display());
        let lists = ranks.gather(serde_json::to_vec(&self.tensors)?);
        if !ranks.is_first() {
            self.spill.seek(SeekFrom::Start(0)).with_context(gathering)?;
            for sent in (0..self.length).step_by(READ_CHUNK_BYTES) {
                let mut chunk = vec![0; READ_CHUNK_BYTES.min((self.length - sent) as usize)];
                self.spill.read_exact(&mut chunk).with_context(gathering)?;
                ranks.send_to_first(&chunk);
            }
            return Ok(());
        }
        for (rank, list) in lists.iter().enumerate().skip(1) {
            let tensors: BTreeMap<String, Spilled> = serde_json::from_slice(list)?;
            let (before, mut left) = (self.length, tensors.values().map(Spilled::bytes).sum::<u64>());
            while left > 0 {
                let chunk = ranks.receive(rank);
                self.spill.write_all(&chunk).with_context(gathering)?;
                (self.length, left) = (self.length + chunk.len() as u64, left.saturating_sub(chunk.len() as u64));
            }
            let moved = |(name, tensor): (String, Spilled)| (name, Spilled { start: before + tensor.start, ..tensor });
            self.tensors.extend(tensors.into_iter().map(moved));
        }
        Ok(())
    }

    /// Writes the finished file into place.
    pub fn finish(mut self, metadata: &BTreeMap<String, String>) -> Result<()> {
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), json!(metadata));
        let mut end = 0;
        for (name, tensor) in &self.tensors {
            let start = end;
            end += tensor.bytes();
            header.insert(name.clone(), json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [start, end]}));
        }
        let mut header = serde_json::to_string(&header)?.into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let spill = &mut self.spill;
        write_atomic(&self.path, |file| {
            file.write_all(&(header.len() as u64).to_le_bytes())?;
            file.write_all(&header)?;
            for tensor in self.tensors.values() {
                spill.seek(SeekFrom::Start(tensor.start))?;
                std::io::copy(&mut spill.take(tensor.bytes()), file)?;
            }
            Ok(())
        })
    }
}

/// Writes tensors to one safetensors file with the header metadata `{"format": "pt"}` that transformers requires.
pub fn save_tensors(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let bytes = safetensors::serialize(tensors.iter(), Some(pt_metadata()))?;
    write_atomic(path, |file| Ok(file.write_all(&bytes)?))
}

/// As [`save_tensors`] with one tensor in memory at a time, directly to `path`: for a folder that is still staged.
pub fn save_tensors_staged(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let writing = || format!("writing {}", path.display());
    safetensors::serialize_to_file(tensors.iter(), Some(pt_metadata()), path).with_context(writing)?;
    File::open(path).with_context(writing)?.sync_all().with_context(writing)
}

fn pt_metadata() -> HashMap<String, String> {
    HashMap::from([("format".to_string(), "pt".to_string())])
}

//! Writing safetensors: to a temporary name in the target folder, synced, then renamed.

use super::{READ_CHUNK_BYTES, STAGED};
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use candle_core::Tensor;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The folder that `path` is or will be in.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The innermost folder of `path`, itself included, that exists.
pub fn existing(path: &Path) -> &Path {
    path.ancestors().find(|place| place.exists()).unwrap_or(Path::new("."))
}

/// Checks that files can be made in the folder `dir`, which need not exist yet; leaves nothing behind. Asked before long
/// work whose result goes there.
pub fn check_writable(dir: &Path) -> Result<()> {
    let place = existing(dir);
    ensure_valid!(place.is_dir(), "cannot write in {}: {} is not a folder", dir.display(), place.display());
    tempfile::tempfile_in(place).map_err(|e| invalid!("cannot write in {}: {e}", dir.display()))?;
    Ok(())
}

/// [`check_writable`] for the file `path`.
pub fn check_writable_file(path: &Path) -> Result<()> {
    ensure_valid!(!path.is_dir(), "cannot write {}: it is a folder; give the name of a file", path.display());
    check_writable(parent(path))
}

/// Writes a file under a temporary name beside `path`, syncs it and renames it into place.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let parent = parent(path);
    let written = || format!("writing {}", path.display());
    std::fs::create_dir_all(parent).with_context(written)?;
    let mut temporary =
        tempfile::Builder::new().prefix(STAGED).permissions(mode()).tempfile_in(parent).with_context(written)?;
    write(temporary.as_file_mut()).with_context(written)?;
    temporary.as_file().sync_all().with_context(written)?;
    temporary.persist(path).with_context(written)?;
    Ok(())
}

/// Ordinary file permissions: temporary files are private by default, finished output should not be.
pub(super) fn mode() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    std::fs::Permissions::from_mode(0o644)
}

/// A safetensors file written tensor by tensor, for outputs larger than memory.
///
/// The format wants every size ahead of the data, so the data go to an unnamed spill file first, on the same disk. No
/// folder is made before the file is finished.
pub struct StreamWriter {
    path: PathBuf,
    spill: File,
    entries: serde_json::Map<String, Value>,
    offset: u64,
}

impl StreamWriter {
    pub fn create(path: &Path) -> Result<Self> {
        check_writable_file(path)?;
        let place = existing(parent(path));
        let spill = tempfile::tempfile_in(place).with_context(|| format!("writing in {}", place.display()))?;
        Ok(Self { path: path.to_path_buf(), spill, entries: serde_json::Map::new(), offset: 0 })
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
        let end = self.offset + values.len() as u64 * 4;
        self.entries
            .insert(name.to_string(), json!({"dtype": "F32", "shape": shape, "data_offsets": [self.offset, end]}));
        self.offset = end;
        Ok(())
    }

    /// Writes the finished file into place.
    pub fn finish(mut self, metadata: &BTreeMap<String, String>) -> Result<()> {
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), json!(metadata));
        header.append(&mut self.entries);
        let mut header = serde_json::to_string(&header)?.into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        self.spill.seek(SeekFrom::Start(0))?;
        let spill = &mut self.spill;
        write_atomic(&self.path, |file| {
            file.write_all(&(header.len() as u64).to_le_bytes())?;
            file.write_all(&header)?;
            std::io::copy(spill, file)?;
            Ok(())
        })
    }
}

/// Writes tensors to one safetensors file with the header metadata `{"format": "pt"}` that transformers asks for.
pub fn save_tensors(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let bytes = safetensors::serialize(tensors.iter(), Some(pt_metadata()))?;
    write_atomic(path, |file| Ok(file.write_all(&bytes)?))
}

/// As [`save_tensors`] with one tensor in memory at a time, straight to `path`: for a folder that is still staged.
pub fn save_tensors_staged(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let writing = || format!("writing {}", path.display());
    safetensors::serialize_to_file(tensors.iter(), Some(pt_metadata()), path).with_context(writing)?;
    File::open(path).with_context(writing)?.sync_all().with_context(writing)
}

fn pt_metadata() -> HashMap<String, String> {
    HashMap::from([("format".to_string(), "pt".to_string())])
}

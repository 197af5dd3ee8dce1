//! Safetensors checkpoints by tensor name: sharded or single-file, read and written.
//!
//! Reading uses positioned reads into buffers of our own rather than a memory map: resident memory is then exactly
//! what the caller asked for, and a file that shrinks under us is an error, not a SIGBUS. Writing goes to a
//! temporary name in the target folder, is synced, and is renamed: a reader never meets half a file.

mod folder;
mod write;

pub use folder::{STAGED, publish, remove_staged, rewrite, rewrite_into, stage, sync_dir};
pub use write::{
    StreamWriter, check_writable, check_writable_file, existing, save_tensors, save_tensors_staged, write_atomic,
};

use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;

/// Largest safetensors header accepted, in bytes (the format's own limit).
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Bytes read at a time while converting, so that no tensor is ever held twice.
const READ_CHUNK_BYTES: usize = 1 << 20;

/// What the header of a shard says of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    shard: usize,
    /// Absolute byte range in the shard's file.
    start: u64,
    end: u64,
}

impl TensorInfo {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn bytes(&self) -> usize {
        (self.end - self.start) as usize
    }
}

struct Shard {
    path: PathBuf,
    file: Mutex<File>,
}

/// An open checkpoint: every tensor of a folder's `model.safetensors`, or of the shards that its index lists.
pub struct Checkpoint {
    shards: Vec<Shard>,
    tensors: BTreeMap<String, TensorInfo>,
    metadata: HashMap<String, String>,
}

impl Checkpoint {
    /// Opens a Hugging Face model folder. Reads headers only.
    ///
    /// # Errors
    /// A missing, truncated or corrupt file; an index that names a file outside the folder, a shard that is not
    /// there, or a tensor that its shard does not hold.
    pub fn open(dir: &Path) -> Result<Self> {
        ensure_valid!(dir.is_dir(), "checkpoint folder {} does not exist", dir.display());
        let index = dir.join("model.safetensors.index.json");
        if index.is_file() {
            return Self::open_sharded(dir, &index);
        }
        let single = dir.join("model.safetensors");
        ensure_valid!(
            single.is_file(),
            "no weights in {}: expected model.safetensors or model.safetensors.index.json (pickled .bin files are \
             never read; convert them with transformers' save_pretrained)",
            dir.display()
        );
        Self::open_file(&single)
    }

    /// Opens one safetensors file.
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut checkpoint = Self { shards: vec![], tensors: BTreeMap::new(), metadata: HashMap::new() };
        checkpoint.add_shard(path)?;
        Ok(checkpoint)
    }

    fn open_sharded(dir: &Path, index: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(index).map_err(|e| invalid!("cannot read {}: {e}", index.display()))?;
        let value: Value =
            serde_json::from_str(&text).map_err(|e| invalid!("{} is not valid JSON: {e}", index.display()))?;
        let map = value["weight_map"]
            .as_object()
            .ok_or_else(|| invalid!("{}: expected an object `weight_map` from tensor to file", index.display()))?;
        let mut files: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, file) in map {
            let file = file
                .as_str()
                .ok_or_else(|| invalid!("{}: the file of tensor {name} is not a string", index.display()))?;
            files.entry(file).or_default().push(name);
        }
        ensure_valid!(!files.is_empty(), "{}: `weight_map` is empty", index.display());
        let mut checkpoint = Self { shards: vec![], tensors: BTreeMap::new(), metadata: HashMap::new() };
        for (file, names) in files {
            let inside = Path::new(file).components().all(|c| matches!(c, Component::Normal(_)));
            ensure_valid!(inside, "{}: `{file}` points outside the checkpoint folder", index.display());
            let path = dir.join(file);
            ensure_valid!(path.is_file(), "{}: shard {file} is missing from {}", index.display(), dir.display());
            checkpoint.add_shard(&path)?;
            for name in names {
                ensure_valid!(
                    checkpoint.tensors.contains_key(name),
                    "{}: tensor {name} is not in {file} as the index says",
                    index.display()
                );
            }
        }
        Ok(checkpoint)
    }

    fn add_shard(&mut self, path: &Path) -> Result<()> {
        let mut file = File::open(path).map_err(|e| invalid!("cannot open {}: {e}", path.display()))?;
        let (data_start, metadata) = read_header(&mut file, path)?;
        let shard = self.shards.len();
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let entry = TensorInfo {
                shape: info.shape.clone(),
                dtype: info.dtype,
                shard,
                start: data_start + start as u64,
                end: data_start + end as u64,
            };
            if let Some(other) = self.tensors.insert(name.clone(), entry) {
                let first = self.shards.get(other.shard).map_or(path, |s| &s.path);
                return Err(invalid!("tensor {name} stands in both {} and {}", first.display(), path.display()));
            }
        }
        self.metadata.extend(metadata.metadata().clone().unwrap_or_default());
        self.shards.push(Shard { path: path.to_path_buf(), file: Mutex::new(file) });
        Ok(())
    }

    /// Tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// The headers' `__metadata__`, all shards together.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// The files of the checkpoint with the names of the tensors each holds, in the file's order.
    pub fn shards(&self) -> Vec<(&Path, Vec<&str>)> {
        let mut shards: Vec<(&Path, Vec<(u64, &str)>)> =
            self.shards.iter().map(|s| (s.path.as_path(), vec![])).collect();
        for (name, info) in &self.tensors {
            shards[info.shard].1.push((info.start, name));
        }
        shards
            .into_iter()
            .map(|(path, mut names)| {
                names.sort_unstable();
                (path, names.into_iter().map(|(_, name)| name).collect())
            })
            .collect()
    }

    fn required(&self, name: &str) -> Result<&TensorInfo> {
        self.tensors.get(name).ok_or_else(|| {
            let hint = crate::error::nearest(name, self.names())
                .map_or(String::new(), |near| format!("; the nearest name there is {near}"));
            let place = self.shards.first().map_or(Path::new("?"), |s| &s.path);
            invalid!("tensor {name} is not in the checkpoint of {}{hint}", place.display())
        })
    }

    /// A tensor's values as f32, row-major, whatever float type it is stored in.
    ///
    /// # Errors
    /// An unknown name, a stored type other than f32, f16 or bf16, or a failed read.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let info = self.required(name)?;
        let mut values = Vec::with_capacity(info.elements());
        let widen: fn(&[u8], &mut Vec<f32>) = match info.dtype {
            Dtype::F32 => {
                |bytes, out| out.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])))
            }
            Dtype::F16 => {
                |bytes, out| out.extend(bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()))
            }
            Dtype::BF16 => {
                |bytes, out| out.extend(bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()))
            }
            other => {
                let path = &self.shards[info.shard].path;
                return Err(invalid!(
                    "tensor {name} in {} has type {other:?}; expected F32, F16 or BF16",
                    path.display()
                ));
            }
        };
        self.for_each_chunk(name, |bytes| widen(bytes, &mut values))?;
        Ok(values)
    }

    /// A tensor's stored bytes.
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(self.required(name)?.bytes());
        self.for_each_chunk(name, |chunk| bytes.extend_from_slice(chunk))?;
        Ok(bytes)
    }

    /// A tensor on `device` in `dtype`.
    pub fn tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let info = self.required(name)?;
        let values = self.read_f32(name)?;
        Ok(Tensor::from_vec(values, info.shape.clone(), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
    }

    fn for_each_chunk(&self, name: &str, mut take: impl FnMut(&[u8])) -> Result<()> {
        let info = self.required(name)?;
        let shard = &self.shards[info.shard];
        let mut file = shard.file.lock().map_err(|_| anyhow::anyhow!("a reader of {name} panicked"))?;
        file.seek(SeekFrom::Start(info.start))?;
        let mut left = info.bytes();
        let mut buffer = vec![0u8; left.min(READ_CHUNK_BYTES)];
        while left > 0 {
            let size = left.min(READ_CHUNK_BYTES);
            file.read_exact(&mut buffer[..size])
                .with_context(|| format!("reading tensor {name} from {}", shard.path.display()))?;
            take(&buffer[..size]);
            left -= size;
        }
        Ok(())
    }

    /// A hash of the named tensors' names, shapes, types and bytes, independent of how they are sharded.
    pub fn content_hash<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<String> {
        let mut names: Vec<&str> = names.into_iter().collect();
        names.sort_unstable();
        let mut all = blake3::Hasher::new();
        for name in names {
            let info = self.required(name)?;
            all.update(format!("{name} {:?} {:?}\n", info.dtype, info.shape).as_bytes());
            self.for_each_chunk(name, |chunk| {
                all.update(chunk);
            })?;
        }
        Ok(all.finalize().to_hex().to_string())
    }
}

/// Reads and checks a safetensors header: returns where the data starts, and the tensors' places.
fn read_header(file: &mut File, path: &Path) -> Result<(u64, Metadata)> {
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
    // `Metadata` checks on its own that shapes, types and offsets agree and leave no gap.
    let metadata: Metadata = serde_json::from_slice(&buffer).map_err(|e| corrupt(e.to_string()))?;
    let expected = 8 + header + metadata.data_len() as u64;
    if expected != size {
        return Err(corrupt(format!("its header describes {expected} bytes, the file has {size} (truncated?)")));
    }
    Ok((8 + header, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;
    use serde_json::json;
    use std::collections::BTreeMap;

    fn folder_with(tensors: &[(&str, &[f32])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let map = tensors
            .iter()
            .map(|(name, values)| (name.to_string(), Tensor::new(*values, &Device::Cpu).unwrap()))
            .collect();
        save_tensors(&dir.path().join("model.safetensors"), &map).unwrap();
        dir
    }

    #[test]
    fn reads_what_it_wrote() {
        let dir = folder_with(&[("a", &[1.0, -2.5]), ("b", &[3.0])]);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(checkpoint.read_f32("a").unwrap(), [1.0, -2.5]);
        assert_eq!(checkpoint.metadata()["format"], "pt");
    }

    #[test]
    fn a_file_without_tensors_is_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none.safetensors");
        save_tensors_staged(&path, &BTreeMap::new()).unwrap();
        assert_eq!(Checkpoint::open_file(&path).unwrap().names().count(), 0);
    }

    #[test]
    fn half_types_widen_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let values = Tensor::new(&[1.5f32, -0.25, 1024.0], &Device::Cpu).unwrap();
        let map = BTreeMap::from([
            ("f16".to_string(), values.to_dtype(DType::F16).unwrap()),
            ("bf16".to_string(), values.to_dtype(DType::BF16).unwrap()),
        ]);
        let path = dir.path().join("x.safetensors");
        save_tensors(&path, &map).unwrap();
        let file = Checkpoint::open_file(&path).unwrap();
        assert_eq!(file.read_f32("f16").unwrap(), [1.5, -0.25, 1024.0]);
        assert_eq!(file.read_f32("bf16").unwrap(), [1.5, -0.25, 1024.0]);
    }

    #[test]
    fn stream_writer_makes_the_same_file_format() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.safetensors");
        let mut writer = StreamWriter::create(&path).unwrap();
        writer.add_f32("x.basis", &[2, 2], &[1.0, 2.0, 3.0, 4.0]).unwrap();
        writer.add_f32("x.empty", &[2, 0], &[]).unwrap();
        writer.finish(&BTreeMap::from([("format".into(), "asft-direction".into())])).unwrap();
        let file = Checkpoint::open_file(&path).unwrap();
        assert_eq!(file.info("x.basis").unwrap().shape, [2, 2]);
        assert_eq!(file.info("x.empty").unwrap().shape, [2, 0]);
        assert_eq!(file.read_f32("x.basis").unwrap(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(file.metadata()["format"], "asft-direction");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_place_to_write_is_checked_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        check_writable(&dir.path().join("a/b")).unwrap();
        check_writable_file(&dir.path().join("a/b.safetensors")).unwrap();
        check_writable_file(Path::new("b.safetensors")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        std::fs::write(dir.path().join("file"), "").unwrap();
        for refused in [check_writable(&dir.path().join("file/a")), check_writable_file(dir.path())] {
            assert_eq!(exit_code(&refused.unwrap_err()), 2);
        }
    }

    #[test]
    fn truncated_and_garbage_files_are_user_errors() {
        let dir = folder_with(&[("a", &[1.0; 64])]);
        let path = dir.path().join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        for broken in [&bytes[..bytes.len() - 7], &bytes[..20], &bytes[..3], &[0xff; 64][..]] {
            std::fs::write(&path, broken).unwrap();
            let error = Checkpoint::open(dir.path()).err().expect("a broken file must be refused");
            assert_eq!(exit_code(&error), 2, "{error:#}");
            assert!(error.to_string().contains("model.safetensors"), "{error:#}");
        }
    }

    #[test]
    fn an_index_may_not_leave_its_folder() {
        let dir = folder_with(&[("a", &[1.0])]);
        for file in ["../model.safetensors", "/etc/passwd"] {
            let index = json!({"weight_map": {"a": file}}).to_string();
            std::fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
            let error = Checkpoint::open(dir.path()).err().expect("must be refused");
            assert!(error.to_string().contains("outside"), "{error:#}");
        }
    }

    #[test]
    fn the_hash_sees_values_and_not_sharding() {
        let one = folder_with(&[("a", &[1.0]), ("b", &[2.0])]);
        let two = folder_with(&[("a", &[1.0])]);
        let three = folder_with(&[("a", &[1.5])]);
        let hash = |dir: &tempfile::TempDir| Checkpoint::open(dir.path()).unwrap().content_hash(["a"]).unwrap();
        assert_eq!(hash(&one), hash(&two));
        assert_ne!(hash(&one), hash(&three));
    }
}

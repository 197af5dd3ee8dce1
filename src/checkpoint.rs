//! Checkpoints by tensor name: safetensors, sharded or in a single file, read and written, and GGUF files ([`gguf`]).
//!
//! Reading uses positioned reads into our own buffers rather than a memory map: resident memory is then exactly what
//! the caller asked for, and a file that shrinks while it is read is an error, not a SIGBUS. Writing goes to a
//! temporary name in the target folder, is synced, and is renamed: a reader never meets half a file.

mod compare;
mod experts;
mod float;
mod folder;
mod four_bit;
pub mod gguf;
mod hash;
mod header;
mod quantised;
pub mod sketch;
mod staging;
mod stored;
mod wrapped;
mod write;

pub use float::all_finite;
pub use folder::{companions_of_gguf, rewrite, rewrite_into};
pub use gguf::{is_gguf, is_gguf_name};
pub use hash::{combined_hash, weight_hash};
pub use staging::{
    STAGED, check_writable, check_writable_file, existing, is_stream, mode, publish, remove_staged, replace, stage,
    sync_dir, write_atomic,
};
pub use stored::{Stored, TensorInfo};
pub use write::{StreamWriter, save_tensors, save_tensors_staged};

use crate::console::log;
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use float::Float;
use gguf::Arrangement;
use half::{bf16, f16};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;

/// Bytes that are compared before whole tensors are.
const BEGINNING_BYTES: usize = 1 << 16;

struct Shard {
    path: PathBuf,
    file: Mutex<File>,
}

/// An open checkpoint: every tensor of a folder's `model.safetensors`, of the shards that its index lists, or of a GGUF file.
#[derive(Default)]
pub struct Checkpoint {
    shards: Vec<Shard>,
    tensors: BTreeMap<String, TensorInfo>,
    /// What belongs to weights in four bits, by their names.
    four_bit: BTreeMap<String, four_bit::Companions>,
    /// Names on disk of tensors that are shown by others: a multimodal checkpoint's text model.
    on_disk: BTreeMap<String, String>,
    /// What of such a checkpoint is not the text model.
    hidden: BTreeSet<String>,
    metadata: HashMap<String, String>,
}

impl Checkpoint {
    /// Opens a Hugging Face model folder, or a GGUF file, whose tensors then have the names, shapes and order of rows
    /// that they have in such a folder. Of a multimodal model's folder only the text model is shown. Reads headers only.
    ///
    /// # Errors
    /// A missing, truncated or corrupt file; an index that names a file outside the folder, a shard that is missing, or
    /// a tensor that its shard does not hold; a GGUF file of a model that is not supported.
    pub fn open(dir: &Path) -> Result<Self> {
        if gguf::is_gguf(dir) {
            return Self::open_gguf(dir);
        }
        ensure_valid!(dir.is_dir(), "checkpoint folder {} does not exist", dir.display());
        let index = dir.join("model.safetensors.index.json");
        let single = dir.join("model.safetensors");
        if index.is_file() {
            let checkpoint = Self::open_sharded(dir, &index)?;
            if single.is_file() && !checkpoint.shards.iter().any(|shard| shard.path == single) {
                let text = format!(
                    "{} is not read: {} names other files; remove one of the two",
                    single.display(),
                    index.display()
                );
                log::warn(&text, json!({"file": single}));
            }
            return checkpoint.folded()?.unwrapped();
        }
        ensure_valid!(
            single.is_file(),
            "no weights in {}: expected model.safetensors or model.safetensors.index.json (pickled .bin files are \
             never read; convert them with transformers' save_pretrained)",
            dir.display()
        );
        Self::open_file(&single)?.folded()?.unwrapped()
    }

    /// Opens one safetensors file.
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut checkpoint = Self::default();
        checkpoint.add_shard(path)?;
        Ok(checkpoint)
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, gguf::Entry { shape, kind, start, end, .. }, arrangement) in
            gguf::tensors(&gguf::Header::read(path)?)?
        {
            let info = TensorInfo { shape, stored: Stored::of_ggml(kind), arrangement, shard: 0, start, end };
            let is_new = tensors.insert(name.clone(), info).is_none();
            ensure_valid!(is_new, "{} has two tensors that are both {name}", path.display());
        }
        let file = File::open(path).map_err(|e| invalid!("cannot open {}: {e}", path.display()))?;
        let shards = vec![Shard { path: path.to_path_buf(), file: Mutex::new(file) }];
        Ok(Self { shards, tensors, ..Self::default() })
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
            files.entry(shard_name(file).map_err(|e| e.context(index.display().to_string()))?).or_default().push(name);
        }
        ensure_valid!(!files.is_empty(), "{}: `weight_map` is empty", index.display());
        let mut checkpoint = Self::default();
        for (file, names) in files {
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
        let (data_start, metadata) = header::read_header(&mut file, path)?;
        let shard = self.shards.len();
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let entry = TensorInfo {
                shape: info.shape.clone(),
                stored: Stored::Plain(info.dtype),
                arrangement: Arrangement::Same,
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
        self.shown().map(|(name, _)| name)
    }

    /// Names of 2-D tensors, sorted.
    pub fn matrices(&self) -> impl Iterator<Item = &str> {
        self.shown().filter(|(_, info)| info.shape.len() == 2).map(|(name, _)| name)
    }

    fn shown(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info)).filter(|(name, _)| !self.is_hidden(name))
    }

    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).filter(|_| !self.is_hidden(name))
    }

    /// The `__metadata__` of the headers, merged over all shards.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// The files of the checkpoint with the names of the tensors in each, hidden ones too, in file order.
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
    /// An unknown name, a stored type that is no float type, blocks with infinite or undefined scales, or a failed read.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.read(name)
    }

    /// A tensor's values as `T`, row-major. Values are held only as `T` and, a chunk at a time, in the stored type.
    fn read<T: Float>(&self, name: &str) -> Result<Vec<T>> {
        let mut values = Vec::with_capacity(self.required(name)?.elements());
        self.append(name, &mut values)?;
        Ok(values)
    }

    /// As [`Checkpoint::read_f32`], in pieces, so that the values need not be in memory together.
    ///
    /// # Errors
    /// As there, and the first of `take`.
    pub fn read_in_pieces(&self, name: &str, mut take: impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
        let info = self.required(name)?;
        let Some(decode) = f32::decoder(info.stored) else { return take(&self.read_f32(name)?) };
        let (mut piece, mut taken) = (vec![], Ok(()));
        self.for_each_chunk(name, |bytes| {
            piece.clear();
            decode(bytes, &mut piece);
            if taken.is_ok() {
                taken = take(&piece);
            }
        })?;
        taken
    }

    fn append<T: Float>(&self, name: &str, values: &mut Vec<T>) -> Result<()> {
        let info = self.required(name)?;
        let path = self.path_of(info);
        if info.stored == Stored::FourBit {
            let matrix = self.quantised(name)?.context("a weight in four bits")?;
            values.extend(matrix.widened().into_iter().map(T::from_wide));
            return Ok(());
        }
        let Some(decode) = T::decoder(info.stored) else {
            let found = info.stored;
            return Err(invalid!("tensor {name} in {} has type {found}; expected F32, F16 or BF16", path.display()));
        };
        let mut finite = true;
        self.for_each_chunk(name, |bytes| {
            // A model with an infinite value of its own shows it later; of a scale, it is damage.
            finite &= !matches!(info.stored, Stored::Blocks(kind) if !kind.is_finite(bytes));
            decode(bytes, values);
        })?;
        ensure_valid!(finite, "tensor {name} in {} has blocks with infinite or undefined scales", path.display());
        Ok(())
    }

    /// A tensor's stored bytes, its rows in transformers' order.
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>> {
        self.bytes_of(name, self.required(name)?)
    }

    fn bytes_of(&self, name: &str, info: &TensorInfo) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(info.bytes());
        self.chunks_of(name, info, |chunk| bytes.extend_from_slice(chunk))?;
        Ok(bytes)
    }

    fn path_of(&self, info: &TensorInfo) -> &Path {
        self.shards.get(info.shard).map_or(Path::new("?"), |shard| &shard.path)
    }

    /// A tensor on `device` in `dtype`: f32, bf16 and f16 are read directly, without a copy in another type; other
    /// types are converted from f32.
    ///
    /// # Errors
    /// As [`Checkpoint::read_f32`].
    pub fn tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let shape = self.required(name)?.shape.clone();
        Ok(match dtype {
            DType::BF16 => Tensor::from_vec(self.read::<bf16>(name)?, shape, device)?,
            DType::F16 => Tensor::from_vec(self.read::<f16>(name)?, shape, device)?,
            DType::F32 => Tensor::from_vec(self.read::<f32>(name)?, shape, device)?,
            other => {
                Tensor::from_vec(self.read::<f32>(name)?, shape, &Device::Cpu)?.to_dtype(other)?.to_device(device)?
            }
        })
    }

    /// The first bytes of a tensor as they are stored: tensors that differ usually do there.
    fn beginning(&self, name: &str, info: &TensorInfo) -> Result<Vec<u8>> {
        let path = self.path_of(info);
        let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        file.seek(SeekFrom::Start(info.start))?;
        let mut bytes = vec![0u8; info.bytes().min(BEGINNING_BYTES)];
        file.read_exact(&mut bytes).with_context(|| format!("reading tensor {name} from {}", path.display()))?;
        Ok(bytes)
    }

    /// All bytes of a tensor, and those of what belongs to it.
    fn for_each_chunk(&self, name: &str, mut take: impl FnMut(&[u8])) -> Result<()> {
        self.chunks_of(name, self.required(name)?, &mut take)?;
        let companions = self.four_bit.get(name).into_iter().flat_map(|companions| companions.tensors());
        companions.into_iter().try_for_each(|info| self.chunks_of(name, info, &mut take))
    }

    fn chunks_of(&self, name: &str, info: &TensorInfo, mut take: impl FnMut(&[u8])) -> Result<()> {
        let shard = &self.shards[info.shard];
        let mut file = shard.file.lock().map_err(|_| anyhow::anyhow!("a reader of {name} panicked"))?;
        file.seek(SeekFrom::Start(info.start))?;
        let (size, rows) = info.chunk();
        let mut left = info.bytes();
        let mut buffer = vec![0u8; left.min(size)];
        while left > 0 {
            let size = left.min(size);
            let chunk = &mut buffer[..size];
            file.read_exact(chunk).with_context(|| format!("reading tensor {name} from {}", shard.path.display()))?;
            info.arrangement.undo(chunk, rows)?;
            take(chunk);
            left -= size;
        }
        Ok(())
    }
}

/// The fields of a model's `config.json`, or what a GGUF file says in its place, and the name of the file.
///
/// # Errors
/// A missing or malformed file; a GGUF file of a model that is not supported.
pub fn model_config(place: &Path) -> Result<(Map<String, Value>, PathBuf)> {
    if gguf::is_gguf(place) {
        return Ok((gguf::model_config(&gguf::Header::read(place)?)?, place.to_path_buf()));
    }
    let path = place.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(|e| invalid!("cannot read {}: {e}", path.display()))?;
    let value = serde_json::from_str(&text).map_err(|e| invalid!("{} is not valid JSON: {e}", path.display()))?;
    match value {
        Value::Object(fields) => Ok((fields, path)),
        _ => Err(invalid!("{} is not a JSON object", path.display())),
    }
}

/// The tokens of a GGUF file by their ids; `None` for a folder, or a file without them.
///
/// # Errors
/// A malformed file.
pub fn vocabulary(place: &Path) -> Result<Option<Vec<String>>> {
    if gguf::is_gguf(place) { Ok(gguf::Header::read(place)?.into_tokens()) } else { Ok(None) }
}

/// The name in the checkpoint folder of a shard that an index calls `file`: the same name, perhaps after `./`.
fn shard_name(file: &str) -> Result<&str> {
    let parts = Path::new(file).components().filter(|part| *part != Component::CurDir).collect::<Vec<_>>();
    match parts.as_slice() {
        [Component::Normal(name)] => name.to_str().ok_or_else(|| invalid!("`{file}` is not a file name")),
        [] => Err(invalid!("`{file}` is not a file name")),
        parts if parts.iter().all(|part| matches!(part, Component::Normal(_))) => {
            Err(invalid!("`{file}` is in a folder of its own; move the shards to where their index is"))
        }
        _ => Err(invalid!("`{file}` points outside the checkpoint folder")),
    }
}

#[cfg(test)]
mod tests;

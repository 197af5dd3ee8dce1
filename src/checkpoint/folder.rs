//! Copies of whole Hugging Face model folders: same files, same shards, other weights.

use super::{Checkpoint, TensorInfo, write_atomic};
use crate::ensure_valid;
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, View};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What a model folder holds besides weights: configs, tokenizer, templates, licence texts.
const COMPANIONS: [&str; 6] = ["json", "jinja", "txt", "model", "md", "tiktoken"];

/// One tensor as written to a file.
struct Blob {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for Blob {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes a copy of the model folder `source` to `out`, shard by shard, with the weights that `replace` gives.
///
/// `replace` is asked for every tensor by name: `None` keeps it, `Some` is written instead, in `dtype` or else in the
/// source's type. Only one shard is in memory at a time; `out` appears only when it is complete.
pub fn rewrite(
    source: &Path,
    checkpoint: &Checkpoint,
    out: &Path,
    dtype: Option<DType>,
    replace: impl Fn(&str) -> Result<Option<Tensor>>,
    progress: &indicatif::ProgressBar,
) -> Result<()> {
    let staging = stage(out)?;
    rewrite_into(source, checkpoint, staging.path(), dtype, replace, progress)?;
    publish(staging, out)
}

/// As [`rewrite`], into an existing folder.
pub fn rewrite_into(
    source: &Path,
    checkpoint: &Checkpoint,
    out: &Path,
    dtype: Option<DType>,
    replace: impl Fn(&str) -> Result<Option<Tensor>>,
    progress: &indicatif::ProgressBar,
) -> Result<()> {
    copy_companions(source, out, dtype)?;
    let shards = checkpoint.shards();
    progress.set_length(shards.len() as u64);
    let (mut total, mut weight_map) = (0, serde_json::Map::new());
    for (path, names) in &shards {
        let file = path.file_name().context("a shard without a file name")?.to_string_lossy().into_owned();
        let mut blobs = Vec::with_capacity(names.len());
        for name in names {
            let blob = blob(checkpoint, name, dtype, replace(name)?)?;
            total += blob.bytes.len();
            weight_map.insert((*name).to_string(), json!(file));
            blobs.push((*name, blob));
        }
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        let target = out.join(&file);
        safetensors::serialize_to_file(blobs, Some(metadata), &target)
            .with_context(|| format!("writing {}", target.display()))?;
        // The library creates files that only their owner may read.
        std::fs::set_permissions(&target, super::write::mode())?;
        std::fs::File::open(&target)?.sync_all()?;
        progress.inc(1);
    }
    if source.join("model.safetensors.index.json").is_file() {
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        let text = serde_json::to_string_pretty(&index)?;
        let path = out.join("model.safetensors.index.json");
        write_atomic(&path, |file| Ok(file.write_all(text.as_bytes())?))?;
    }
    Ok(())
}

/// Prefix of our temporary files and folders until they are renamed.
pub const STAGED: &str = ".asft-";

/// Removes what a killed process left unfinished in `dir`.
pub fn remove_staged(dir: &Path) -> Result<()> {
    let reading = || format!("reading {}", dir.display());
    for entry in std::fs::read_dir(dir).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(STAGED)) {
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// A temporary folder beside `out`, which must not exist yet.
pub fn stage(out: &Path) -> Result<tempfile::TempDir> {
    ensure_valid!(!out.exists(), "{} already exists; choose another output folder", out.display());
    let parent = super::write::parent(out);
    super::check_writable(parent)?;
    std::fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    tempfile::Builder::new()
        .prefix(STAGED)
        .tempdir_in(parent)
        .with_context(|| format!("writing in {}", parent.display()))
}

/// Gives a finished staging folder its name. Its files must have been synced; the folders are synced here, so after a
/// crash there is either nothing of that name or all of it.
pub fn publish(staging: tempfile::TempDir, out: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    // Temporary folders are private to the user; the finished one should have ordinary permissions.
    std::fs::set_permissions(staging.path(), std::fs::Permissions::from_mode(0o755))?;
    sync_dir(staging.path())?;
    std::fs::rename(staging.path(), out).with_context(|| format!("moving the finished folder to {}", out.display()))?;
    let renamed: PathBuf = staging.keep();
    sync_dir(renamed.parent().unwrap_or(Path::new(".")))
}

/// Makes the names in a folder as durable as the files' contents.
pub fn sync_dir(dir: &Path) -> Result<()> {
    let syncing = || format!("syncing {}", dir.display());
    std::fs::File::open(dir).with_context(syncing)?.sync_all().with_context(syncing)
}

fn blob(checkpoint: &Checkpoint, name: &str, dtype: Option<DType>, tensor: Option<Tensor>) -> Result<Blob> {
    let info: &TensorInfo = checkpoint.required(name)?;
    let stored = match info.dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    };
    let (Some(stored), Some(target)) = (stored, dtype.or(stored)) else {
        // Integer buffers and the like pass through.
        return Ok(Blob { dtype: info.dtype, shape: info.shape.clone(), bytes: checkpoint.read_bytes(name)? });
    };
    let tensor = match tensor {
        None if stored == target => {
            return Ok(Blob { dtype: info.dtype, shape: info.shape.clone(), bytes: checkpoint.read_bytes(name)? });
        }
        None => checkpoint.tensor(name, DType::F32, &Device::Cpu)?,
        Some(tensor) => tensor,
    };
    let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(target)?.contiguous()?;
    let (dtype, bytes) = (View::dtype(&&tensor), View::data(&&tensor).into_owned());
    Ok(Blob { dtype, shape: tensor.dims().to_vec(), bytes })
}

/// Copies everything but weights; a new `dtype` is also written into config.json, whichever key it uses.
fn copy_companions(source: &Path, out: &Path, dtype: Option<DType>) -> Result<()> {
    let reading = || format!("reading {}", source.display());
    for entry in std::fs::read_dir(source).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_string();
        let weights = name.ends_with(".index.json") || name.starts_with("adapter_");
        if !path.is_file() || weights || !COMPANIONS.contains(&extension) {
            continue;
        }
        let target = out.join(&name);
        match (name.as_str(), dtype) {
            ("config.json", Some(dtype)) => set_dtype(&path, &target, dtype)?,
            _ => {
                let copying = || format!("copying {}", path.display());
                std::fs::copy(&path, &target).with_context(copying)?;
                std::fs::File::open(&target)?.sync_all().with_context(copying)?;
            }
        }
    }
    Ok(())
}

fn set_dtype(source: &Path, target: &Path, dtype: DType) -> Result<()> {
    let text = std::fs::read_to_string(source).with_context(|| format!("reading {}", source.display()))?;
    let mut config: Value = serde_json::from_str(&text)?;
    let name = match dtype {
        DType::F32 => "float32",
        DType::F16 => "float16",
        _ => "bfloat16",
    };
    let key = if config.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    config[key] = json!(name);
    let text = serde_json::to_string_pretty(&config)? + "\n";
    write_atomic(target, |file| Ok(file.write_all(text.as_bytes())?))
}

//! Copies of whole Hugging Face model folders: same files, same shards, other weights.

use super::staging::{mode, publish, stage, write_atomic};
use super::{Checkpoint, TensorInfo};
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, View};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

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
        std::fs::set_permissions(&target, mode())?;
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

//! Copies of whole Hugging Face model folders: same files, same shards, other weights.

use super::staging::{mode, publish, stage, write_atomic};
use super::{Checkpoint, Stored, TensorInfo, is_gguf, model_config};
use crate::ensure_valid;
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, View};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use tempfile::TempDir;

/// What a model folder holds besides weights: configs, tokenizer, templates, licence texts.
const COMPANIONS: [&str; 6] = ["json", "jinja", "txt", "model", "md", "tiktoken"];
/// How the names of texts begin that have to go where a model goes, whatever their ending.
const LICENCES: [&str; 4] = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"];

/// Values in a shard of a model whose own shards would not do: what is in memory at a time.
const SHARD_ELEMENTS: usize = 1 << 30;

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
/// source's type. What of a multimodal model is not its text model keeps its type. Only one shard is in memory at a time;
/// `out` appears only when it is complete.
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
    ensure_valid!(
        !is_gguf(source),
        "{} is a GGUF file; a model folder is written from one: give the folder or hub id of the model",
        source.display()
    );
    copy_companions(source, out, &ConfigEdits { dtype, untie: !is_untied(source)? && checkpoint.has_own_head()? })?;
    let files = files(checkpoint, SHARD_ELEMENTS)?;
    progress.set_length(files.len() as u64);
    let (mut total, mut weight_map) = (0, serde_json::Map::new());
    for (file, names) in &files {
        let mut blobs = Vec::with_capacity(names.len());
        for name in names {
            let blob = blob(checkpoint, name, dtype, replace(name)?)?;
            total += blob.bytes.len();
            let on_disk = checkpoint.name_on_disk(name);
            weight_map.insert(on_disk.to_string(), json!(file));
            blobs.push((on_disk, blob));
        }
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        let target = out.join(file);
        safetensors::serialize_to_file(blobs, Some(metadata), &target)
            .with_context(|| format!("writing {}", target.display()))?;
        // The library creates files that only their owner may read.
        std::fs::set_permissions(&target, mode())?;
        std::fs::File::open(&target)?.sync_all()?;
        progress.inc(1);
    }
    if files.len() > 1 || source.join("model.safetensors.index.json").is_file() {
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        let text = serde_json::to_string_pretty(&index)?;
        let path = out.join("model.safetensors.index.json");
        write_atomic(&path, |file| Ok(file.write_all(text.as_bytes())?))?;
    }
    Ok(())
}

/// The files to be written with the tensors of each: the shards of the source or, where weights become larger than they are
/// stored, shards of `limit` values or a little more.
fn files(checkpoint: &Checkpoint, limit: usize) -> Result<Vec<(String, Vec<&str>)>> {
    let shards = checkpoint.shards();
    let is_folder = !shards.iter().any(|(path, _)| is_gguf(path));
    if is_folder && !checkpoint.is_quantised() {
        return shards.into_iter().map(named).collect();
    }
    let (mut parts, mut elements) = (vec![vec![]], 0);
    for name in shards.into_iter().flat_map(|(_, names)| names) {
        if elements > limit {
            parts.push(vec![]);
            elements = 0;
        }
        elements += checkpoint.required(name)?.elements();
        parts.last_mut().context("there is a first shard")?.push(name);
    }
    let count = parts.len();
    let file = |i: usize| match count {
        1 => "model.safetensors".to_string(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
    };
    Ok(parts.into_iter().enumerate().map(|(i, names)| (file(i), names)).collect())
}

fn named<'a>((path, names): (&Path, Vec<&'a str>)) -> Result<(String, Vec<&'a str>)> {
    let file = path.file_name().context("a shard without a file name")?;
    Ok((file.to_string_lossy().into_owned(), names))
}

/// A folder with what the folder of a GGUF file's model has besides weights: its config.json, and the files of its
/// tokenizer's folder, if it has one.
///
/// # Errors
/// A malformed file, or a folder that cannot be read.
pub fn companions_of_gguf(place: &Path, tokenizer: Option<&Path>, dtype: DType) -> Result<TempDir> {
    let (config, _) = model_config(place)?;
    let dir = tempfile::tempdir().context("making a temporary folder")?;
    if let Some(tokenizer) = tokenizer.filter(|place| !is_gguf(place)) {
        copy_companions(tokenizer, dir.path(), &ConfigEdits::default())?;
    }
    let path = dir.path().join("config.json");
    std::fs::write(&path, Value::Object(config).to_string()).with_context(|| format!("writing {}", path.display()))?;
    ConfigEdits { dtype: Some(dtype), untie: false }.write(&path, &path)?;
    Ok(dir)
}

fn blob(checkpoint: &Checkpoint, name: &str, dtype: Option<DType>, tensor: Option<Tensor>) -> Result<Blob> {
    let info: &TensorInfo = checkpoint.required(name)?;
    let dtype = dtype.filter(|_| !checkpoint.is_hidden(name));
    let kept = |dtype| Ok(Blob { dtype, shape: info.shape.clone(), bytes: checkpoint.read_bytes(name)? });
    let (stored, source) = match info.stored {
        Stored::Plain(plain @ Dtype::F32) => (DType::F32, Some(plain)),
        Stored::Plain(plain @ Dtype::F16) => (DType::F16, Some(plain)),
        Stored::Plain(plain @ Dtype::BF16) => (DType::BF16, Some(plain)),
        // Integer buffers and the like pass through.
        Stored::Plain(other) => return kept(other),
        Stored::Blocks(_) | Stored::FourBit => (DType::F32, None),
    };
    let target = dtype.unwrap_or(stored);
    let tensor = match (tensor, source) {
        (None, Some(source)) if stored == target => return kept(source),
        (None, _) => checkpoint.tensor(name, DType::F32, &Device::Cpu)?,
        (Some(tensor), _) => tensor,
    };
    let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(target)?.contiguous()?;
    let (dtype, bytes) = (View::dtype(&&tensor), View::data(&&tensor).into_owned());
    Ok(Blob { dtype, shape: tensor.dims().to_vec(), bytes })
}

/// Copies everything but weights; config.json with `edits`.
fn copy_companions(source: &Path, out: &Path, edits: &ConfigEdits) -> Result<()> {
    let reading = || format!("reading {}", source.display());
    for entry in std::fs::read_dir(source).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_string();
        let weights = name.ends_with(".index.json") || name.starts_with("adapter_");
        let is_licence = LICENCES.iter().any(|begin| name.to_uppercase().starts_with(begin));
        if !path.is_file() || weights || !(COMPANIONS.contains(&extension) || is_licence) {
            continue;
        }
        let target = out.join(&name);
        if name == "config.json" && !edits.is_none() {
            edits.write(&path, &target)?;
        } else {
            let copying = || format!("copying {}", path.display());
            std::fs::copy(&path, &target).with_context(copying)?;
            std::fs::File::open(&target)?.sync_all().with_context(copying)?;
        }
    }
    Ok(())
}

/// What a copy's config.json says other than the source's.
#[derive(Default)]
struct ConfigEdits {
    /// The type of the weights.
    dtype: Option<DType>,
    /// Whether the stored head counts although the config ties it to the embedding. Not every reader looks at the weights to see it.
    untie: bool,
}

impl ConfigEdits {
    fn is_none(&self) -> bool {
        self.dtype.is_none() && !self.untie
    }

    fn write(&self, source: &Path, target: &Path) -> Result<()> {
        let text = std::fs::read_to_string(source).with_context(|| format!("reading {}", source.display()))?;
        let mut config: Value = serde_json::from_str(&text)?;
        if let Some(dtype) = self.dtype {
            set_dtype(&mut config, dtype);
        }
        if self.untie {
            config["tie_word_embeddings"] = json!(false);
        }
        let text = serde_json::to_string_pretty(&config)? + "\n";
        write_atomic(target, |file| Ok(file.write_all(text.as_bytes())?))
    }
}

/// Whether a folder's config.json says that the head is not the embedding.
fn is_untied(folder: &Path) -> Result<bool> {
    let (config, _) = model_config(folder)?;
    Ok(config.get("tie_word_embeddings") == Some(&Value::Bool(false)))
}

/// Sets the type of the weights, under whichever key the config has it. Weights that were quantised are written value by value.
fn set_dtype(config: &mut Value, dtype: DType) {
    let name = match dtype {
        DType::F32 => "float32",
        DType::F16 => "float16",
        _ => "bfloat16",
    };
    let key = if config.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    config[key] = json!(name);
    for key in ["dtype", "torch_dtype"] {
        if let Some(of_text) = config.get_mut("text_config").and_then(|text| text.get_mut(key)) {
            *of_text = json!(name);
        }
    }
    if let Some(fields) = config.as_object_mut() {
        fields.remove("quantization_config");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Checkpoint, save_tensors};
    use std::collections::BTreeMap;

    /// Two shards with weights and, if wanted, one in four bits.
    fn sharded(dir: &Path, quantised: bool) -> Checkpoint {
        let cpu = &Device::Cpu;
        let plain = |rows: usize| Tensor::zeros((rows, 64), DType::F32, cpu).unwrap();
        let mut shards = [BTreeMap::from([("a".to_string(), plain(2))]), BTreeMap::from([("b".to_string(), plain(2))])];
        if quantised {
            let state = json!({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [4, 64]}).to_string();
            shards[1].extend([
                ("c".to_string(), Tensor::zeros((128, 1), DType::U8, cpu).unwrap()),
                ("c.absmax".to_string(), Tensor::ones(4, DType::F32, cpu).unwrap()),
                ("c.quant_map".to_string(), Tensor::zeros(16, DType::F32, cpu).unwrap()),
                ("c.quant_state.bitsandbytes__nf4".to_string(), Tensor::new(state.as_bytes(), cpu).unwrap()),
            ]);
        }
        let mut map = serde_json::Map::new();
        for (shard, file) in shards.iter().zip(["model-1.safetensors", "model-2.safetensors"]) {
            save_tensors(&dir.join(file), shard).unwrap();
            map.extend(shard.keys().map(|name| (name.clone(), json!(file))));
        }
        std::fs::write(dir.join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).unwrap();
        Checkpoint::open(dir).unwrap()
    }

    #[test]
    fn widened_weights_are_written_in_shards_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let names = |checkpoint: &Checkpoint, limit| -> Vec<(String, Vec<String>)> {
            let files = files(checkpoint, limit).unwrap();
            files.into_iter().map(|(file, names)| (file, names.into_iter().map(String::from).collect())).collect()
        };
        let own = names(&sharded(dir.path(), false), 1);
        assert_eq!(
            own.iter().map(|(file, _)| file.as_str()).collect::<Vec<_>>(),
            ["model-1.safetensors", "model-2.safetensors"]
        );
        let checkpoint = sharded(dir.path(), true);
        let parts = names(&checkpoint, 200);
        assert_eq!(
            parts.iter().map(|(file, _)| file.as_str()).collect::<Vec<_>>(),
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        );
        assert_eq!(parts.iter().map(|(_, names)| names.len()).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(names(&checkpoint, 1 << 20).len(), 1);
    }
}

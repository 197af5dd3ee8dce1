//! A model, with an adapter merged into it, as llama.cpp loads it: one GGUF file, a tensor in memory at a time.

use super::gguf::{heads, stored_rows};
use super::merge::merged;
use super::{Adapter, ModelFile};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::gguf::{Family, Planned, Written, write};
use crate::model::ModelSpec;
use crate::quant::ggml::GgmlType;
use crate::tokenizer::Tokenizer;
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use candle_core::{DType, Device};
use indicatif::ProgressBar;
use std::collections::BTreeMap;
use std::path::Path;

/// The tensor by which rotary frequencies are divided.
const FACTORS: &str = "rope_freqs.weight";

/// What a file is made of.
pub struct Parts<'a> {
    pub spec: &'a ModelSpec,
    pub checkpoint: &'a Checkpoint,
    pub adapter: &'a Adapter,
    pub tokenizer: &'a Tokenizer,
}

/// Writes the merged model to `path`, its matrices as `kind` says, the rest in f32.
///
/// # Errors
/// A model or tokenizer that has no form in GGUF files; a merged weight that is not finite, or does not fit the type.
pub fn save_merged_gguf(parts: &Parts, kind: ModelFile, path: &Path, progress: &ProgressBar) -> Result<()> {
    let family = Family::of_model_type(&parts.spec.model_type)?;
    let metadata = metadata(parts, family, kind)?;
    let factors = parts.spec.rope_factors()?;
    let (mut planned, mut sources) = (vec![], BTreeMap::new());
    for (name, shape) in parts.spec.tensors() {
        let stored = family.name_in_file(&name).ok_or_else(|| invalid!("{name} has no name in GGUF files"))?;
        planned.push(Planned { name: stored.clone(), kind: kind.of(&shape), shape });
        sources.insert(stored, name);
    }
    if let Some(factors) = &factors {
        planned.push(Planned { name: FACTORS.to_string(), kind: GgmlType::F32, shape: vec![factors.len()] });
    }
    progress.set_length(planned.len() as u64);
    write(path, &metadata, &planned, |tensor| {
        progress.inc(1);
        let values = match &factors {
            Some(factors) if tensor.name == FACTORS => factors.clone(),
            _ => values(parts, family, sources.get(&tensor.name).context("a tensor that was planned")?)?,
        };
        let blocks = tensor.kind.quantise(&values).with_context(|| tensor.name.clone())?;
        ensure_valid!(tensor.kind.is_finite(&blocks), "{} does not fit {}", tensor.name, tensor.kind.name());
        Ok(blocks)
    })
}

fn metadata(parts: &Parts, family: &Family, kind: ModelFile) -> Result<Vec<(String, Written)>> {
    let text = |value: &str| Written::Text(value.to_string());
    let general = [
        ("general.architecture", text(family.architecture)),
        ("general.type", text("model")),
        ("general.file_type", Written::Whole(kind.code())),
        ("general.quantization_version", Written::Whole(2)),
    ];
    let general = general.into_iter().map(|(key, value)| (key.to_string(), value));
    let model = parts.spec.gguf_metadata()?;
    Ok(general.chain(model).chain(parts.tokenizer.gguf(parts.spec.vocab_size)?).collect())
}

/// The merged values of the tensor `name`, their rows in the order of GGUF files.
fn values(parts: &Parts, family: &Family, name: &str) -> Result<Vec<f32>> {
    let merged = merged(name, parts.checkpoint, parts.adapter)?;
    let tensor = merged.map_or_else(|| parts.checkpoint.tensor(name, DType::F32, &Device::Cpu), Ok)?;
    let (rows, values) = (tensor.dims().first().copied().unwrap_or(0), tensor.flatten_all()?.to_vec1::<f32>()?);
    let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
    match heads(parts.spec, module).filter(|_| family.permutes) {
        Some(heads) => stored_rows(&values, rows, heads),
        None => Ok(values),
    }
}

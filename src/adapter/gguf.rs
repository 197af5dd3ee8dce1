//! An adapter as llama.cpp loads it: one GGUF file with A and B of every module, in f32.
//!
//! llama.cpp knows one α for all modules, and scales B A by α / r, or by 1 if α is 0. α is therefore chosen so that α / r is the
//! first scale that is not 0, and B of a module with another scale is multiplied by what is left: ΔW is the same, whether the
//! scale is rsLoRA's or differs from module to module. Rows of B of q and k are in the order of the file's family; the columns
//! of A, which meet the hidden state, are in the same order everywhere.

use super::{Adapter, AdapterModule};
use crate::checkpoint::gguf::{Family, Planned, Written, stored_row, write};
use crate::model::ModelSpec;
use crate::names::split_block;
use crate::quant::ggml::GgmlType;
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// Writes the adapter of a model with this spec to `path`.
///
/// # Errors
/// A model that has no GGUF architecture; a module that llama.cpp does not know.
pub fn save_gguf(adapter: &Adapter, spec: &ModelSpec, path: &Path) -> Result<()> {
    let family = Family::of_model_type(&spec.model_type)?;
    let alphas = adapter.modules.values().map(|module| (adapter.scale(module) * module.rank() as f64) as f32);
    let alpha = alphas.into_iter().find(|alpha| *alpha != 0.0).unwrap_or(1.0);
    let (mut tensors, mut values) = (vec![], BTreeMap::new());
    for (module, matrices) in &adapter.modules {
        let linear = split_block(module).and_then(|(block, part)| family.module_name(block, part));
        let linear = linear.ok_or_else(|| invalid!("{module} has no name in GGUF files"))?;
        let heads = if family.permutes { heads(spec, module) } else { None };
        for (ending, (shape, matrix)) in [("a", first(matrices)?), ("b", second(adapter, matrices, alpha, heads)?)] {
            let name = format!("{linear}.weight.lora_{ending}");
            tensors.push(Planned { name: name.clone(), shape, kind: GgmlType::F32 });
            values.insert(name, matrix);
        }
    }
    let text = |value: &str| Written::Text(value.to_string());
    let metadata = [
        ("general.architecture", text(family.architecture)),
        ("general.type", text("adapter")),
        ("adapter.type", text("lora")),
        ("adapter.lora.alpha", Written::Float(alpha)),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_string(), value));
    write(path, &metadata, &tensors, |tensor| {
        let values = values.remove(&tensor.name).context("a tensor that was planned")?;
        Ok(values.into_iter().flat_map(f32::to_le_bytes).collect())
    })
}

/// How many heads the rows of a module are, if their order is another in GGUF files.
pub(super) fn heads(spec: &ModelSpec, module: &str) -> Option<usize> {
    let (layer, linear) = split_block(module)?;
    match linear {
        "self_attn.q_proj" => Some(spec.num_attention_heads),
        "self_attn.k_proj" => Some(spec.heads(layer).kv_heads),
        _ => None,
    }
}

/// A matrix, row-major.
type Values = (Vec<usize>, Vec<f32>);

fn values(matrix: &Tensor) -> Result<Values> {
    Ok((matrix.dims().to_vec(), matrix.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?))
}

/// A, [r, d_in]
fn first(module: &AdapterModule) -> Result<Values> {
    values(&module.a)
}

/// B, [d_out, r], with what α does not say, and its rows in the order of GGUF files.
fn second(adapter: &Adapter, module: &AdapterModule, alpha: f32, heads: Option<usize>) -> Result<Values> {
    let (shape, mut b) = values(&module.b)?;
    let (rank, rows) = (module.rank(), shape.first().copied().unwrap_or(0));
    let scale = adapter.scale(module);
    let rest = scale * rank as f64 / f64::from(alpha);
    ensure_valid!(rest.is_finite(), "lora_alpha is out of the range of f32");
    // A rest of one to the rounding of α is one: what llama.cpp reads is then bit for bit what PEFT does.
    if (rest - 1.0).abs() > f64::from(f32::EPSILON) {
        b.iter_mut().for_each(|value| *value = (f64::from(*value) * rest) as f32);
    }
    match heads {
        Some(heads) => Ok((shape, stored_rows(&b, rows, heads)?)),
        None => Ok((shape, b)),
    }
}

/// Values of `rows` rows of heads in the order of GGUF files.
pub(super) fn stored_rows(values: &[f32], rows: usize, heads: usize) -> Result<Vec<f32>> {
    let (width, mut stored) = (values.len() / rows.max(1), vec![0f32; values.len()]);
    for (row, values) in values.chunks(width.max(1)).enumerate() {
        let to = stored_row(row, rows, heads)? * width;
        stored[to..to + width].copy_from_slice(values);
    }
    Ok(stored)
}

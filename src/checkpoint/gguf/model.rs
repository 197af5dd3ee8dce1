//! A GGUF file's tensors under the names, and in the order of rows, that transformers has.

use super::facts::Facts;
use super::family::stored_row;
use super::header::{Entry, Header};
use crate::ensure_valid;
use crate::quant::ggml::GgmlType;
use anyhow::Result;

/// Buffers that say nothing which the metadata do not, and the factors of rotary frequencies, which [`super::config`]
/// reads.
const NO_WEIGHTS: [&str; 2] = ["rope_freqs.weight", "rotary_emb.inv_freq"];

/// In what a stored tensor differs from transformers'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arrangement {
    #[default]
    Same,
    /// Rows of heads are in Meta's order.
    HeadRows { heads: usize },
    /// f32 values are greater by 1.
    PlusOne,
}

impl Arrangement {
    /// Turns stored bytes into transformers': those of a head's rows for [`Arrangement::HeadRows`], of any number of
    /// values for the others. `rows`: of a head.
    pub fn undo(self, bytes: &mut [u8], rows: usize) -> Result<()> {
        match self {
            Self::Same => {}
            Self::HeadRows { .. } => {
                let (stored, row_bytes) = (bytes.to_vec(), bytes.len() / rows);
                let stored: Vec<&[u8]> = stored.chunks(row_bytes).collect();
                for (row, out) in bytes.chunks_mut(row_bytes).enumerate() {
                    out.copy_from_slice(stored[stored_row(row, rows, 1)?]);
                }
            }
            Self::PlusOne => {
                for value in bytes.as_chunks_mut::<4>().0 {
                    *value = (f32::from_le_bytes(*value) - 1.0).to_le_bytes();
                }
            }
        }
        Ok(())
    }
}

/// The tensors of a model with transformers' names.
///
/// # Errors
/// As [`Facts::of`]; a tensor that no model of this architecture has, or that does not fit the metadata.
pub fn tensors(header: &Header) -> Result<Vec<(String, Entry, Arrangement)>> {
    let read = || {
        let facts = Facts::of(header)?;
        let mut tensors = vec![];
        for entry in &header.entries {
            if NO_WEIGHTS.iter().any(|name| entry.name.ends_with(name)) || entry.name.ends_with("attn_rot_embd") {
                continue;
            }
            let arrangement = arrangement(&facts, entry).map_err(|e| e.context(format!("tensor {}", entry.name)))?;
            tensors.push((facts.family.tensor_name(&entry.name)?, entry.clone(), arrangement));
        }
        Ok(tensors)
    };
    read().map_err(|e: anyhow::Error| e.context(format!("{} cannot be used as a model", header.path.display())))
}

fn arrangement(facts: &Facts, entry: &Entry) -> Result<Arrangement> {
    if facts.family.norms_plus_one && entry.name.ends_with("norm.weight") {
        ensure_valid!(entry.kind == GgmlType::F32, "it has the type {}, expected F32", entry.kind.name());
        return Ok(Arrangement::PlusOne);
    }
    let part = entry.name.rsplit('.').nth(1).unwrap_or_default();
    let heads = match part {
        "attn_q" if facts.family.permutes => facts.heads()?,
        "attn_k" if facts.family.permutes => facts.kv_heads()?,
        _ => return Ok(Arrangement::Same),
    };
    let rows = entry.shape.first().copied().unwrap_or(0);
    stored_row(0, rows, heads)?;
    ensure_valid!(
        entry.shape.len() > 1 || !entry.kind.is_quantised(),
        "it has one dimension and the type {}, expected a float type",
        entry.kind.name()
    );
    Ok(Arrangement::HeadRows { heads })
}

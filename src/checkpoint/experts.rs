//! Experts of a mixture that lie in one tensor, as transformers 5 holds them: shown one by one, as most checkpoints have them.
//!
//! `…mlp.experts.gate_up_proj` [E, 2 I, H] holds each expert's gate and then its up projection, `…mlp.experts.down_proj` [E, H, I]
//! its down projection: each is a range of the file's bytes.

use super::stored::{Stored, TensorInfo};
use crate::names::in_expert;
use std::collections::BTreeMap;

const FUSED: [(&str, &[&str]); 2] =
    [("mlp.experts.gate_up_proj", &["gate_proj", "up_proj"]), ("mlp.experts.down_proj", &["down_proj"])];

/// Replaces fused tensors by the matrices in them.
pub fn split(tensors: &mut BTreeMap<String, TensorInfo>) {
    let fused: Vec<String> = tensors.keys().filter(|name| part_of(name).is_some()).cloned().collect();
    for name in fused {
        let Some(parts) = tensors.get(&name).and_then(|info| matrices(&name, info)) else { continue };
        tensors.remove(&name);
        tensors.extend(parts);
    }
}

/// What precedes `mlp.experts…` in a fused tensor's name, and the linears that it holds.
fn part_of(name: &str) -> Option<(&str, &'static [&'static str])> {
    FUSED.iter().find_map(|(ending, linears)| Some((name.strip_suffix(ending)?, *linears)))
}

/// The matrices of a fused tensor, or `None` if it has another shape or is not stored value by value.
fn matrices(name: &str, info: &TensorInfo) -> Option<Vec<(String, TensorInfo)>> {
    let ((prefix, linears), [experts, rows, columns]) =
        (part_of(name)?, *<&[usize; 3]>::try_from(&info.shape[..]).ok()?);
    let Stored::Plain(_) = info.stored else { return None };
    if experts == 0 || !rows.is_multiple_of(linears.len()) {
        return None;
    }
    let count = experts * linears.len();
    let size = (info.end - info.start) / count as u64;
    let shape = vec![rows / linears.len(), columns];
    let each = (0..count).map(|index| {
        let (expert, linear) = (index / linears.len(), linears[index % linears.len()]);
        let start = info.start + index as u64 * size;
        let part = TensorInfo { shape: shape.clone(), start, end: start + size, ..info.clone() };
        (format!("{prefix}{}.weight", in_expert(expert, linear)), part)
    });
    Some(each.collect())
}

//! Weights in four bits as bitsandbytes stores them in a model folder: shown as the matrices that they stand for.
//!
//! Beside `<name>.weight`, two codes a byte, stand its companions: `<name>.weight.absmax`, `.quant_map`, perhaps
//! `.nested_absmax` and `.nested_quant_map`, and `.quant_state.bitsandbytes__nf4` (or `__fp4`), which is JSON in bytes.

use super::stored::{Stored, TensorInfo};
use crate::quant::{Blocks, FourBit, Nested, Parts, Quantised, Rounding, Scales};
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use safetensors::tensor::Dtype;
use serde::Deserialize;
use std::collections::BTreeMap;

const STATE: &str = ".quant_state.bitsandbytes__";
/// The most that the JSON may take.
const MAX_STATE_BYTES: usize = 1 << 16;

/// What other ways to quantise leave in a folder, by the ends of tensor names.
const OTHERS: [(&str, &str); 7] = [
    (".SCB", "bitsandbytes in eight bits"),
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    ("_blocks", "MXFP4"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale_inv", "FP8"),
    (".weight_scale", "FP8 or compressed-tensors"),
];

/// `quant_state` as it is stored.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct State {
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

/// The companions of a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Companions {
    state: State,
    /// By the ends of their names.
    tensors: BTreeMap<&'static str, TensorInfo>,
}

impl Companions {
    /// What they are and where, in a fixed order.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.tensors.values()
    }
}

/// Takes the companions of weights in four bits out of `tensors`, and gives the weights the shapes that they stand for.
/// `read` reads a tensor's bytes.
///
/// # Errors
/// Companions that are missing or do not fit; tensors of another way to quantise.
pub fn fold(
    tensors: &mut BTreeMap<String, TensorInfo>,
    read: impl Fn(&str, &TensorInfo) -> Result<Vec<u8>>,
) -> Result<BTreeMap<String, Companions>> {
    let states: Vec<String> = tensors.keys().filter(|name| name.contains(STATE)).cloned().collect();
    let mut found = BTreeMap::new();
    for state in states {
        let Some((name, _)) = state.split_once(STATE) else { continue };
        let companions =
            take(tensors, name, &state, &read).map_err(|e| e.context(format!("weight {name} in four bits")))?;
        found.insert(name.to_string(), companions);
    }
    for (end, method) in OTHERS {
        if let Some(name) = tensors.keys().find(|name| name.ends_with(end)) {
            return Err(invalid!(
                "tensor {name} is of a model quantised by {method}, which cannot be read here; use the model that it was made \
                 from (with model.quantize = \"nf4\" or --quantize nf4 if memory is short), a bitsandbytes folder in four bits, \
                 or a GGUF file"
            ));
        }
    }
    Ok(found)
}

fn take(
    tensors: &mut BTreeMap<String, TensorInfo>,
    name: &str,
    state_name: &str,
    read: &impl Fn(&str, &TensorInfo) -> Result<Vec<u8>>,
) -> Result<Companions> {
    let info = tensors.remove(state_name).context("a name that was just found")?;
    ensure_valid!(info.bytes() <= MAX_STATE_BYTES, "{state_name} has {} bytes", info.bytes());
    let state: State = serde_json::from_slice(&read(state_name, &info)?)
        .map_err(|e| invalid!("{state_name} is not the JSON of a quant_state: {e}"))?;
    let nested = state.nested_offset.is_some();
    let length = state.shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size));
    let (2, Some(length)) = (state.shape.len(), length) else {
        return Err(invalid!("{state_name} has the shape {:?}, expected that of a matrix", state.shape));
    };
    ensure_valid!(state.blocksize > 0, "{state_name} has blocks of 0 values");
    let blocks = length.div_ceil(state.blocksize);
    let mut companions = BTreeMap::new();
    let mut companion = |end: &'static str, dtype: Dtype, count: usize| -> Result<()> {
        let full = format!("{name}.{end}");
        let info = tensors.remove(&full).ok_or_else(|| invalid!("its companion {full} is missing"))?;
        let fits = info.stored == Stored::Plain(dtype) && info.elements() == count;
        ensure_valid!(
            fits,
            "its companion {full} has {} values of type {}, expected {count} of {dtype:?}",
            info.elements(),
            info.stored
        );
        companions.insert(end, info);
        Ok(())
    };
    companion("absmax", if nested { Dtype::U8 } else { Dtype::F32 }, blocks)?;
    companion("quant_map", Dtype::F32, 16)?;
    if nested {
        let size = state.nested_blocksize.filter(|size| *size > 0);
        let size = size.ok_or_else(|| invalid!("{state_name} has no nested_blocksize"))?;
        companion("nested_absmax", Dtype::F32, blocks.div_ceil(size))?;
        companion("nested_quant_map", Dtype::F32, 256)?;
    }
    companions.insert("quant_state", info);
    let weight = tensors.get_mut(name).ok_or_else(|| invalid!("its codes are missing"))?;
    ensure_valid!(
        weight.bytes() == length.div_ceil(2),
        "its codes have {} bytes, expected {} for the shape {:?}",
        weight.bytes(),
        length.div_ceil(2),
        state.shape
    );
    weight.shape.clone_from(&state.shape);
    weight.stored = Stored::FourBit;
    Ok(Companions { state, tensors: companions })
}

/// The matrix that the codes and companions are. `read` reads a companion's bytes.
///
/// # Errors
/// Values that are infinite or NaN; a type that values are not rounded to.
pub fn matrix(
    packed: Vec<u8>,
    companions: &Companions,
    read: impl Fn(&TensorInfo) -> Result<Vec<u8>>,
) -> Result<Quantised> {
    let Companions { state, tensors } = companions;
    let bytes = |end: &str| read(tensors.get(end).with_context(|| format!("its companion {end}"))?);
    let floats = |end: &str| -> Result<Vec<f32>> {
        Ok(bytes(end)?.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    };
    let scales = match (state.nested_offset, state.nested_blocksize) {
        (Some(offset), Some(block)) => Scales::Nested(Nested {
            codes: bytes("absmax")?,
            table: floats("nested_quant_map")?,
            absmax: floats("nested_absmax")?,
            block,
            offset,
        }),
        _ => Scales::Plain(floats("absmax")?),
    };
    let rounding = match state.dtype.as_str() {
        "float32" => Rounding::F32,
        "bfloat16" => Rounding::Bf16,
        "float16" => Rounding::F16,
        other => return Err(invalid!("its values were of type {other}; expected float32, bfloat16 or float16")),
    };
    let table = floats("quant_map")?.try_into().map_err(|_| invalid!("its quant_map has not 16 values"))?;
    let [rows, columns] = state.shape[..] else { return Err(invalid!("it is no matrix")) };
    let parts = Parts { packed, block: state.blocksize, table, scales, rounding };
    Quantised::new((rows, columns), Blocks::FourBit(FourBit::new(rows * columns, parts)?))
}

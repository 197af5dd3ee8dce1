//! Four bits a value on any device: as tensors that candle's operations, or a kernel, widen.

#![allow(unsafe_code, reason = "a GPU kernel")]

use crate::ops::gpu::{self, Arg, Launch, PACK, unwritten};
use crate::quant::{FourBit, Rounding, Scales};
use anyhow::Result;
use candle_core::{DType, Device, Tensor};

/// Four bits a value as tensors. The matrix is filled up with zeros to whole blocks.
pub struct Codes {
    /// u8 [blocks, block / 2], two codes each
    bytes: Tensor,
    /// f32 [256, 2]: what the two codes of a byte stand for, before their scale
    pairs: Tensor,
    /// f32 [blocks, 1], or what gives it
    scales: DeviceScales,
    rounding: DType,
}

enum DeviceScales {
    Plain(Tensor),
    /// A byte each, in blocks with a scale of their own.
    Nested {
        /// u8 [scales], filled up to whole blocks
        codes: Tensor,
        /// f32 [256]
        table: Tensor,
        /// f32 [blocks of scales, 1]
        absmax: Tensor,
        block: usize,
        offset: f64,
    },
}

impl Codes {
    pub fn new(values: &FourBit, device: &Device) -> Result<Self> {
        let blocks = values.scales().count();
        let mut bytes = values.packed().to_vec();
        bytes.resize(blocks * values.block() / 2, 0);
        let table = values.table();
        let pairs: Vec<f32> = (0..256).flat_map(|byte| [table[byte >> 4], table[byte & 15]]).collect();
        Ok(Self {
            bytes: Tensor::from_vec(bytes, (blocks, values.block() / 2), device)?,
            pairs: Tensor::from_vec(pairs, (256, 2), device)?,
            scales: DeviceScales::new(values.scales(), device)?,
            rounding: match values.rounding() {
                Rounding::F32 => DType::F32,
                Rounding::Bf16 => DType::BF16,
                Rounding::F16 => DType::F16,
            },
        })
    }

    /// [rows, columns] in `dtype`
    pub fn dense(&self, dims: (usize, usize), dtype: DType) -> Result<Tensor> {
        let (blocks, half) = self.bytes.dims2()?;
        if (2 * half).is_multiple_of(PACK) && gpu::QUANTISED.serve(&[&self.pairs]) {
            return self.dense_by_kernel(dims, dtype);
        }
        let values = self.scaled(&self.bytes, &self.scales.values(blocks)?)?;
        Ok(values.to_dtype(dtype)?.flatten_all()?.narrow(0, 0, dims.0 * dims.1)?.reshape(dims)?)
    }

    fn dense_by_kernel(&self, dims: (usize, usize), dtype: DType) -> Result<Tensor> {
        let (n, half) = (dims.0 * dims.1, self.bytes.dim(1)?);
        let rounding = match self.rounding {
            DType::BF16 => 1,
            DType::F16 => 2,
            _ => 0,
        };
        let [plain, codes, table, absmax] = match &self.scales {
            DeviceScales::Plain(scales) => [Some(scales), None, None, None],
            DeviceScales::Nested { codes, table, absmax, .. } => [None, Some(codes), Some(table), Some(absmax)],
        };
        let (block, offset) = match &self.scales {
            DeviceScales::Plain(_) => (1, 0.0),
            DeviceScales::Nested { block, offset, .. } => (*block, *offset),
        };
        // SAFETY: codes for n values, scales for their blocks; the kernel writes all of `out`.
        unsafe {
            let out = unwritten(dims, dtype, self.bytes.device())?;
            Launch::map(&gpu::QUANTISED, "four_bit", dtype, n).run(&[
                Arg::In(&self.bytes),
                Arg::In(&self.pairs),
                Arg::Maybe(plain),
                Arg::Maybe(codes),
                Arg::Maybe(table),
                Arg::Maybe(absmax),
                Arg::Out(&out),
                Arg::Small(2 * half),
                Arg::Small(block),
                Arg::Float(offset),
                Arg::Small(rounding),
                Arg::Large(n as u64),
            ])?;
            Ok(out)
        }
    }

    /// The rows of a matrix, if they are whole blocks.
    pub fn rows(&self, ids: &Tensor, columns: usize) -> Result<Option<Tensor>> {
        let (blocks, half) = self.bytes.dims2()?;
        if columns == 0 || !columns.is_multiple_of(2 * half) {
            return Ok(None);
        }
        let in_row = columns / (2 * half);
        let of_rows = |x: &Tensor, width: usize| x.reshape((blocks / in_row, in_row * width))?.index_select(ids, 0);
        let bytes = of_rows(&self.bytes, half)?.reshape(((), half))?;
        let scales = of_rows(&self.scales.values(blocks)?, 1)?.reshape(((), 1))?;
        Ok(Some(self.scaled(&bytes, &scales)?.reshape((ids.dim(0)?, columns))?))
    }

    /// bytes [n, block / 2], scales [n, 1] -> f32 [n, block]
    fn scaled(&self, bytes: &Tensor, scales: &Tensor) -> Result<Tensor> {
        let (n, half) = bytes.dims2()?;
        let values = look_up(&self.pairs, &bytes.flatten_all()?)?.reshape((n, 2 * half))?;
        Ok(values.broadcast_mul(scales)?.to_dtype(self.rounding)?.to_dtype(DType::F32)?)
    }
}

impl DeviceScales {
    fn new(scales: &Scales, device: &Device) -> Result<Self> {
        Ok(match scales {
            Scales::Plain(scales) => Self::Plain(Tensor::from_vec(scales.clone(), (scales.len(), 1), device)?),
            Scales::Nested(nested) => {
                let mut codes = nested.codes.clone();
                codes.resize(nested.absmax.len() * nested.block, 0);
                Self::Nested {
                    codes: Tensor::from_vec(codes, nested.absmax.len() * nested.block, device)?,
                    table: Tensor::from_vec(nested.table.clone(), 256, device)?,
                    absmax: Tensor::from_vec(nested.absmax.clone(), (nested.absmax.len(), 1), device)?,
                    block: nested.block,
                    offset: f64::from(nested.offset),
                }
            }
        })
    }

    /// f32 [count, 1]
    fn values(&self, count: usize) -> Result<Tensor> {
        match self {
            Self::Plain(scales) => Ok(scales.clone()),
            Self::Nested { codes, table, absmax, block, offset } => {
                let values = look_up(table, codes)?.reshape(((), *block))?.broadcast_mul(absmax)?;
                Ok((values.flatten_all()? + *offset)?.narrow(0, 0, count)?.reshape((count, 1))?)
            }
        }
    }
}

/// The rows of `table` that the bytes name. candle takes the largest number of an index's type for no row, so bytes are
/// widened first.
fn look_up(table: &Tensor, bytes: &Tensor) -> Result<Tensor> {
    Ok(table.index_select(&bytes.to_dtype(DType::U32)?, 0)?)
}

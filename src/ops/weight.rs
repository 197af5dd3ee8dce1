//! A weight as products read it: dense, or quantised. The only place that knows which.
//!
//! On the CPU a quantised weight is widened a block of rows at a time inside the product. Elsewhere it is widened whole
//! into the type of the product, used, and dropped: one scratch of the largest weight. Only between a block's second forward pass and its
//! backward pass, with checkpointing, its linears' copies stay for the other product.

mod packed;

pub use packed::Packed;

use super::sum::{is_finite, square_sum};
use super::{cast, fused, values};
use crate::ops::widen::Values;
use crate::quant::Quantised;
use anyhow::{Result, bail};
use candle_core::{DType, Device, Layout, Storage, Tensor};
use std::ops::Deref;

/// A matrix [rows, columns] that is multiplied with: y = x Wᵀ, dx = dy W, and looked up by rows.
#[derive(Clone)]
pub enum Weight {
    Dense(Tensor),
    Packed(Packed),
}

impl From<Tensor> for Weight {
    fn from(tensor: Tensor) -> Self {
        Self::Dense(tensor)
    }
}

impl Weight {
    /// A quantised matrix on a device.
    pub fn quantised(matrix: Quantised, device: &Device) -> Result<Self> {
        Ok(Self::Packed(Packed::new(matrix, device)?))
    }

    /// [rows, columns]
    pub fn dims(&self) -> Result<(usize, usize)> {
        Operand::from(self).dims()
    }

    pub fn device(&self) -> &Device {
        match self {
            Self::Dense(tensor) => tensor.device(),
            Self::Packed(packed) => packed.device(),
        }
    }

    /// The tensor of a weight that is not quantised.
    ///
    /// # Errors
    /// A quantised weight.
    pub fn tensor(&self) -> Result<&Tensor> {
        match self {
            Self::Dense(tensor) => Ok(tensor),
            Self::Packed(_) => bail!("a quantised weight where only a dense one can be used"),
        }
    }

    /// The weight as a tensor [rows, columns] of `dtype`.
    pub fn dense(&self, dtype: DType) -> Result<Tensor> {
        Operand::from(self).dense(dtype)
    }

    /// The rows `ids` as a tensor [ids, columns] of `dtype`.
    pub fn rows(&self, ids: &[u32], dtype: DType) -> Result<Tensor> {
        let rows = match self {
            Self::Dense(tensor) => tensor.index_select(&Tensor::new(ids, tensor.device())?, 0)?,
            Self::Packed(packed) => packed.rows(ids)?,
        };
        Ok(rows.to_dtype(dtype)?)
    }

    /// Keeps these weights, as far as they are quantised and widened whole, once a product has widened them, until what is returned is
    /// dropped.
    pub fn keep_widened<'a>(weights: impl Iterator<Item = &'a Self>) -> Kept<'a> {
        let packed = weights.filter_map(|weight| match weight {
            Self::Packed(packed) if packed.host().is_none() => Some(packed),
            _ => None,
        });
        let packed: Vec<&Packed> = packed.collect();
        packed.iter().for_each(|packed| packed.keep_widened(true));
        Kept(packed)
    }

    /// Whether no value is infinite or NaN.
    pub fn is_finite(&self) -> Result<bool> {
        match self {
            Self::Dense(tensor) => is_finite(tensor),
            Self::Packed(packed) => is_finite(&packed.dense(DType::F32)?),
        }
    }

    /// The square of the Frobenius norm.
    pub fn square_sum(&self) -> Result<f64> {
        match self {
            Self::Dense(tensor) => square_sum(tensor)?.read(),
            Self::Packed(packed) => square_sum(&packed.dense(DType::F32)?)?.read(),
        }
    }
}

/// Weights of which a widened copy is kept.
pub struct Kept<'a>(Vec<&'a Packed>);

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|packed| packed.keep_widened(false));
    }
}

/// The right-hand side of a product.
#[derive(Clone, Copy)]
pub enum Operand<'a> {
    Dense(&'a Tensor),
    Packed(&'a Packed),
}

impl<'a> From<&'a Tensor> for Operand<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        Self::Dense(tensor)
    }
}

impl<'a> From<&'a Weight> for Operand<'a> {
    fn from(weight: &'a Weight) -> Self {
        match weight {
            Weight::Dense(tensor) => Self::Dense(tensor),
            Weight::Packed(packed) => Self::Packed(packed),
        }
    }
}

impl<'a> Operand<'a> {
    /// (rows, columns)
    pub fn dims(self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(tensor) => Ok(tensor.dims2()?),
            Self::Packed(packed) => Ok(packed.dims()),
        }
    }

    /// Whether the CPU's kernels may read it.
    pub(super) fn fused(self) -> bool {
        match self {
            Self::Dense(tensor) => fused(&[tensor]),
            Self::Packed(packed) => packed.host().is_some() && super::has_cpu_kernels(),
        }
    }

    /// Whether it is f16, which takes long to widen.
    pub(super) fn is_f16(self) -> bool {
        matches!(self, Self::Dense(tensor) if tensor.dtype() == DType::F16)
    }

    /// Its values in `dtype`, on its device.
    pub fn dense(self, dtype: DType) -> Result<Tensor> {
        match self {
            Self::Dense(tensor) => cast(tensor, dtype),
            Self::Packed(packed) => packed.dense(dtype),
        }
    }

    /// Its memory, held still for a kernel.
    pub(super) fn hold(self) -> Held<'a, impl Deref<Target = Storage>> {
        match self {
            Self::Dense(tensor) => Held::Tensor(tensor.storage_and_layout()),
            Self::Packed(packed) => Held::Packed(packed),
        }
    }
}

/// The memory of an [`Operand`].
pub(super) enum Held<'a, S> {
    Tensor((S, &'a Layout)),
    Packed(&'a Packed),
}

impl<S: Deref<Target = Storage>> Held<'_, S> {
    /// # Errors
    /// Not contiguous in the CPU's memory.
    pub fn values(&self) -> Result<Values<'_>> {
        match self {
            Self::Tensor(guard) => values(guard),
            Self::Packed(packed) => match packed.host() {
                Some(matrix) => Ok(Values::Quantised(matrix)),
                None => bail!("a fused kernel was given a weight on another device"),
            },
        }
    }
}

#[cfg(test)]
mod tests;

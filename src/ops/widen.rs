//! Half-precision values in memory, f32 in arithmetic: bf16 and f16 slices widened on the way in, rounded on the way
//! out, on every thread. Quantised values likewise, on the way in.

use super::fast_math::vectorised;
use crate::quant::Quantised;
use anyhow::Result;
use candle_core::{CpuStorage, DType, Device, Shape, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

const CHUNK: usize = 1 << 14;

/// Values of a tensor in the type that they are stored in.
#[derive(Clone, Copy)]
pub enum Values<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
    Quantised(&'a Quantised),
}

impl<'a> Values<'a> {
    /// `None` for types that no kernel computes with.
    pub fn of(storage: &'a CpuStorage, (start, end): (usize, usize)) -> Option<Self> {
        match storage {
            CpuStorage::F32(values) => values.get(start..end).map(Self::F32),
            CpuStorage::BF16(values) => values.get(start..end).map(Self::Bf16),
            CpuStorage::F16(values) => values.get(start..end).map(Self::F16),
            _ => None,
        }
    }

    fn len(self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Quantised(matrix) => matrix.len(),
        }
    }

    /// `out.len()` values from `start` on, as f32, on every thread.
    pub fn widen_into(self, start: usize, out: &mut [f32]) {
        let chunks = out.par_chunks_mut(CHUNK).enumerate();
        chunks.for_each(|(i, out)| self.widen_part(start + i * CHUNK, out));
    }

    /// As [`Values::widen_into`], on this thread.
    fn widen_part(self, start: usize, out: &mut [f32]) {
        let end = start + out.len();
        match self {
            Self::F32(values) => out.copy_from_slice(&values[start..end]),
            Self::Bf16(values) => vectorised!({
                for (out, x) in out.iter_mut().zip(&values[start..end]) {
                    *out = of_bf16(*x);
                }
            }),
            Self::F16(values) => values[start..end].convert_to_f32_slice(out),
            Self::Quantised(matrix) => matrix.widen(start, out),
        }
    }

    /// A range of values as f32, widened on this thread or where they are.
    pub fn wide(self, range: Range<usize>) -> Cow<'a, [f32]> {
        match self {
            Self::F32(values) => Cow::Borrowed(&values[range]),
            // Into memory that is not zeroed first.
            Self::Bf16(values) => Cow::Owned(vectorised!(values[range].iter().map(|x| of_bf16(*x)).collect())),
            Self::F16(values) => Cow::Owned(values[range].to_f32_vec()),
            Self::Quantised(matrix) => {
                let mut out = vec![0f32; range.len()];
                matrix.widen(range.start, &mut out);
                Cow::Owned(out)
            }
        }
    }

    /// All values as f32.
    pub fn widened(self) -> Vec<f32> {
        let mut out = vec![0f32; self.len()];
        self.widen_into(0, &mut out);
        out
    }
}

/// bf16 is the upper half of an f32: a shift, which loops have in vectors.
#[inline(always)]
pub fn of_bf16(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// A CPU tensor of f32, bf16 or f16 from f32 values, rounded to nearest even.
pub fn tensor(values: Vec<f32>, shape: Shape, dtype: DType) -> Result<Tensor> {
    Ok(match dtype {
        DType::BF16 => {
            let mut rounded = vec![bf16::ZERO; values.len()];
            rounded.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(out, part)| {
                out.convert_from_f32_slice(part);
            });
            Tensor::from_vec(rounded, shape, &Device::Cpu)?
        }
        DType::F16 => {
            let mut rounded = vec![f16::ZERO; values.len()];
            rounded.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(out, part)| {
                out.convert_from_f32_slice(part);
            });
            Tensor::from_vec(rounded, shape, &Device::Cpu)?
        }
        _ => Tensor::from_vec(values, shape, &Device::Cpu)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_trip_as_candle_has_them() {
        let values: Vec<f32> = (0..40_000).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
        let exact = Tensor::from_vec(values.clone(), values.len(), &Device::Cpu).unwrap();
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let rounded = tensor(values.clone(), values.len().into(), dtype).unwrap();
            let expected = exact.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
            let expected = expected.to_vec1::<f32>().unwrap();
            let wide = crate::ops::with_f32([&rounded], |[wide]| wide.to_vec()).unwrap();
            assert_eq!(wide, expected);
        }
    }
}

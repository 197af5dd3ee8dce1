//! Exponential moving averages of tensors in f32: AdamW's moments, and an average of parameters (train/defence/ema.rs).

use anyhow::Result;
use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor};
use rayon::prelude::*;

/// Elements per task.
pub(super) const CHUNK: usize = 1 << 14;

/// x ← β x + (1 − β) s g, or with (s g)².
pub struct Average {
    pub beta: f64,
    pub scale: f64,
    pub square: bool,
}

impl Average {
    /// Of the values themselves.
    pub fn of_values(beta: f64) -> Self {
        Self { beta, scale: 1.0, square: false }
    }

    /// Takes `new`, of the shape of `average`, into it: in place on the CPU, so that `average` must not share its memory.
    pub fn take_in(&self, average: &mut Tensor, new: &Tensor) -> Result<()> {
        if new.device().is_cpu() {
            average.inplace_op2(&new.contiguous()?, self)?;
        } else {
            *average = self.generic(average, new)?;
        }
        Ok(())
    }

    pub(super) fn generic(&self, x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        let rest = 1.0 - self.beta;
        let g = if self.square {
            (gradient.sqr()? * (rest * self.scale.powi(2)))?
        } else {
            (gradient * (rest * self.scale))?
        };
        Ok(((x * self.beta)? + g)?)
    }
}

impl InplaceOp2 for Average {
    fn name(&self) -> &'static str {
        "moving-average"
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, l1: &Layout, g: &CpuStorage, l2: &Layout) -> candle_core::Result<()> {
        let (x, g) = (values_mut(x, l1)?, values(g, l2)?);
        let (beta, rest, scale) = (self.beta as f32, (1.0 - self.beta) as f32, self.scale as f32);
        let square = self.square;
        x.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).for_each(|(x, g)| {
            for (x, g) in x.iter_mut().zip(g) {
                let g = g * scale;
                *x = beta * *x + rest * if square { g * g } else { g };
            }
        });
        Ok(())
    }
}

pub(super) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => candle_core::bail!("the optimizer needs contiguous f32 tensors"),
    }
}

pub(super) fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> candle_core::Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => candle_core::bail!("the optimizer needs contiguous f32 tensors"),
    }
}

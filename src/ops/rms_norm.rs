//! RMSNorm: y = w ∘ x · s, s = (mean(x²) + eps)^(-1/2) per row; x, y: [N, d], w: [d], s: [N]. In f32, rounded once.
//!
//! Backward, with z = w ∘ dy: dx = s z − x s³ ⟨z, x⟩ / d; dw = Σ_n dy ∘ x s.

#![allow(unsafe_code, reason = "results in memory that holds nothing yet, and GPU kernels")]

use super::fast_math::vectorised;
use super::fresh::{Unwritten, filled};
use super::sum::add;
use super::{fused, gpu, output, traffic, with_f32};
use anyhow::Result;
use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

/// What the backward pass needs.
pub struct Saved {
    x: Tensor,
    eps: f64,
    /// s, if the forward pass computed it.
    scale: Option<Tensor>,
}

impl Saved {
    /// s, if the GPU's kernels computed it and serve x and these tensors.
    fn on_gpu(&self, others: &[&Tensor]) -> Option<&Tensor> {
        let scale = self.scale.as_ref()?;
        let all = [&[&self.x, scale], others].concat();
        gpu::RMS_NORM.serve(&all).then_some(scale)
    }

    /// s: [N, 1] in f32, from x in f32.
    fn scale(&self, wide: &Tensor) -> Result<Tensor> {
        match &self.scale {
            Some(scale) => Ok(scale.clone()),
            None => {
                let d = wide.dim(D::Minus1)? as f64;
                Ok(wide.sqr()?.sum_keepdim(D::Minus1)?.affine(1.0 / d, self.eps)?.sqrt()?.recip()?)
            }
        }
    }
}

/// x: [N, d], weight: [d] -> y: [N, d]
pub fn forward(x: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Saved)> {
    let (y, scale) = if fused(&[x, weight]) {
        let (y, scale) = kernel::forward(x, weight, eps)?;
        (y, Some(scale))
    } else if gpu::RMS_NORM.serve(&[x, weight]) {
        let (_, y, scale) = on_gpu::forward(x, None, weight, eps)?;
        (y, Some(scale))
    } else {
        (generic(x, weight, eps)?, None)
    };
    Ok((y, Saved { x: x.clone(), eps, scale }))
}

/// The norm of a sum, as at a residual connection. x, added: [N, d] -> (x + added, y): [N, d] each
pub fn forward_sum(x: &Tensor, added: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Tensor, Saved)> {
    if x.dtype() == added.dtype() && x.dims() == added.dims() && gpu::RMS_NORM.serve(&[x, added, weight]) {
        let (sum, y, scale) = on_gpu::forward(x, Some(added), weight, eps)?;
        return Ok((sum.clone(), y, Saved { x: sum, eps, scale: Some(scale) }));
    }
    let sum = add(x, added)?;
    let (y, saved) = forward(&sum, weight, eps)?;
    Ok((sum, y, saved))
}

/// dy: [N, d] -> dx: [N, d]
pub fn backward_input(saved: &Saved, weight: &Tensor, dy: &Tensor) -> Result<Tensor> {
    if let Some(scale) = saved.scale.as_ref().filter(|_| fused(&[&saved.x, weight, dy])) {
        return kernel::backward_input(&saved.x, scale, weight, dy);
    }
    if let Some(scale) = saved.on_gpu(&[weight, dy]) {
        return on_gpu::backward_input(&saved.x, scale, weight, dy, None);
    }
    let (x, dy) = (saved.x.to_dtype(DType::F32)?, dy.to_dtype(DType::F32)?);
    let (d, scale) = (x.dim(D::Minus1)? as f64, saved.scale(&x)?);
    let z = dy.broadcast_mul(&weight.to_dtype(DType::F32)?)?;
    let pull = ((&z * &x)?.sum_keepdim(D::Minus1)? * (scale.sqr()? / d)?)?;
    Ok((z - x.broadcast_mul(&pull)?)?.broadcast_mul(&scale)?.to_dtype(saved.x.dtype())?)
}

/// added + dx, as at a residual connection. dy, added: [N, d]
pub fn backward_input_sum(saved: &Saved, weight: &Tensor, dy: &Tensor, added: &Tensor) -> Result<Tensor> {
    match saved.on_gpu(&[weight, dy, added]).filter(|_| added.dtype() == dy.dtype()) {
        Some(scale) => on_gpu::backward_input(&saved.x, scale, weight, dy, Some(added)),
        None => add(added, &backward_input(saved, weight, dy)?),
    }
}

/// dy: [N, d] -> dw: [d], f32
pub fn backward_weight(saved: &Saved, dy: &Tensor) -> Result<Tensor> {
    if let Some(scale) = saved.on_gpu(&[dy]) {
        return on_gpu::backward_weight(&saved.x, scale, dy);
    }
    let x = saved.x.to_dtype(DType::F32)?;
    let normed = x.broadcast_mul(&saved.scale(&x)?)?;
    Ok((dy.to_dtype(DType::F32)? * normed)?.sum(0)?)
}

/// The body for any device: candle's fused kernel, in f32 whatever the compute type. It keeps no s.
fn generic(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let (wide, weight) = (x.to_dtype(DType::F32)?.contiguous()?, weight.to_dtype(DType::F32)?);
    Ok(candle_nn::ops::rms_norm(&wide, &weight, eps as f32)?.to_dtype(x.dtype())?)
}

mod on_gpu {
    use super::*;
    use gpu::{Arg, Launch, RMS_NORM, unwritten};

    /// Most parts in which the weight's gradient is summed.
    const MAX_PARTS: usize = 64;
    /// Rows that make it worth to sum another part.
    const ROWS_PER_PART: usize = 32;

    /// (x + added, y, s)
    pub fn forward(x: &Tensor, added: Option<&Tensor>, weight: &Tensor, eps: f64) -> Result<(Tensor, Tensor, Tensor)> {
        let (n, d) = x.dims2()?;
        anyhow::ensure!(d > 0 && weight.elem_count() == d, "weight {:?} does not fit {:?}", weight.dims(), x.dims());
        let (weight, device) = (weight.to_dtype(DType::F32)?, x.device());
        let launch = Launch::rows(&RMS_NORM, "rms_norm_forward", x.dtype(), (n, d));
        // SAFETY: x, the sum and y are [n, d] of one type, as `added` is by `forward_sum`; the weight has d values, and s n. The kernel
        // writes all that is new, but the sum only if there is something to add.
        unsafe {
            let sum = if added.is_some() { unwritten((n, d), x.dtype(), device)? } else { x.clone() };
            let (y, scale) = (unwritten((n, d), x.dtype(), device)?, unwritten((n, 1), DType::F32, device)?);
            launch.run(&[
                Arg::In(x),
                Arg::Maybe(added),
                Arg::In(&weight),
                Arg::MaybeOut(added.map(|_| &sum)),
                Arg::Out(&y),
                Arg::Out(&scale),
                Arg::Small(d),
                Arg::Float(eps),
            ])?;
            Ok((sum, y, scale))
        }
    }

    /// dx, plus `added` if there is one.
    pub fn backward_input(
        x: &Tensor,
        scale: &Tensor,
        weight: &Tensor,
        dy: &Tensor,
        added: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (n, d) = x.dims2()?;
        let fits = d > 0 && weight.elem_count() == d && dy.dims() == x.dims() && scale.elem_count() == n;
        let fits = fits && added.is_none_or(|added| added.dims() == x.dims()) && dy.dtype() == x.dtype();
        anyhow::ensure!(fits, "gradient {:?} does not fit input {:?}", dy.dims(), x.dims());
        let weight = weight.to_dtype(DType::F32)?;
        let launch = Launch::rows(&RMS_NORM, "rms_norm_backward", x.dtype(), (n, d));
        // SAFETY: checked above; `added` has the type of dy by `backward_input_sum`. The kernel writes all of dx.
        unsafe {
            let dx = unwritten((n, d), x.dtype(), x.device())?;
            launch.run(&[
                Arg::In(x),
                Arg::In(scale),
                Arg::In(&weight),
                Arg::In(dy),
                Arg::Maybe(added),
                Arg::Out(&dx),
                Arg::Small(d),
            ])?;
            Ok(dx)
        }
    }

    pub fn backward_weight(x: &Tensor, scale: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let (n, d) = x.dims2()?;
        let fits = dy.dims() == x.dims() && scale.elem_count() == n && dy.dtype() == x.dtype();
        anyhow::ensure!(fits, "gradient {:?} does not fit input {:?}", dy.dims(), x.dims());
        let parts = n.div_ceil(ROWS_PER_PART).clamp(1, MAX_PARTS);
        let launch = Launch::map(&RMS_NORM, "rms_norm_backward_weight", x.dtype(), d).in_parts(parts);
        // SAFETY: checked above. The kernel writes all parts.
        let sums = unsafe {
            let sums = unwritten((parts, d), DType::F32, x.device())?;
            launch.run(&[Arg::In(x), Arg::In(scale), Arg::In(dy), Arg::Out(&sums), Arg::Small(n), Arg::Small(d)])?;
            sums
        };
        Ok(traffic::counted(sums.sum(0)?, &[&sums]))
    }
}

mod kernel {
    use super::*;

    pub fn forward(x: &Tensor, weight: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
        let (n, d) = x.dims2()?;
        anyhow::ensure!(d > 0 && weight.elem_count() == d, "weight {:?} does not fit {:?}", weight.dims(), x.dims());
        let mut scale = vec![0f32; n];
        let y = with_f32([x, weight], |[x, w]| {
            let row = |((y, x), s): ((&mut Unwritten, &[f32]), &mut f32)| {
                vectorised!({
                    *s = ((dot(x, x) / d as f64 + eps).sqrt().recip()) as f32;
                    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                        y.write(x * *s * w);
                    }
                });
            };
            // SAFETY: x is of y's size, and w as long as a row.
            unsafe { filled(n * d, |y| y.par_chunks_mut(d).zip(x.par_chunks(d)).zip(&mut scale).for_each(row)) }
        })?;
        Ok((output(y, (n, d), x)?, Tensor::from_vec(scale, (n, 1), x.device())?))
    }

    pub fn backward_input(x: &Tensor, scale: &Tensor, weight: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let (n, d) = dy.dims2()?;
        let fits = d > 0 && weight.elem_count() == d && x.dims2()? == (n, d) && scale.elem_count() == n;
        anyhow::ensure!(fits, "gradient {:?} does not fit input {:?}", dy.dims(), x.dims());
        let dx = with_f32([x, scale, weight, dy], |[x, scale, w, dy]| {
            let row = |dx: &mut Unwritten, x: &[f32], dy: &[f32], s: f32| {
                vectorised!({
                    let z: Vec<f32> = dy.iter().zip(w).map(|(dy, w)| dy * w).collect();
                    let pull = (dot(&z, x) / d as f64) as f32 * s * s * s;
                    for ((dx, x), z) in dx.iter_mut().zip(x).zip(&z) {
                        dx.write(z * s - x * pull);
                    }
                });
            };
            // SAFETY: x and dy are of dx's size, and w as long as a row.
            unsafe {
                filled(n * d, |dx| {
                    let rows = dx.par_chunks_mut(d).zip(x.par_chunks(d)).zip(dy.par_chunks(d)).zip(scale);
                    rows.for_each(|(((dx, x), dy), s)| row(dx, x, dy, *s));
                })
            }
        })?;
        output(dx, (n, d), dy)
    }

    /// ⟨a, b⟩ in eight f32 lanes per block of 64, blocks summed in f64.
    #[inline(always)]
    fn dot(a: &[f32], b: &[f32]) -> f64 {
        let (a, b) = (a.chunks_exact(64), b.chunks_exact(64));
        let rest = block(a.remainder().chunks(8).zip(b.remainder().chunks(8)));
        a.zip(b).map(|(a, b)| block(a.chunks_exact(8).zip(b.chunks_exact(8)))).sum::<f64>() + rest
    }

    #[inline(always)]
    fn block<'a>(eights: impl Iterator<Item = (&'a [f32], &'a [f32])>) -> f64 {
        let mut lanes = [0f32; 8];
        for (a, b) in eights {
            for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
                *lane += a * b;
            }
        }
        lanes.iter().map(|&lane| f64::from(lane)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Case, close, random};
    use candle_core::Var;

    const EPS: f64 = 1e-5;

    #[test]
    fn matches_autograd_and_finite_differences() {
        let (x, w, dy) = (random(&[6, 70], 1), random(&[70], 2), random(&[6, 70], 3));
        let (y, saved) = forward(&x, &w, EPS).unwrap();
        let (dx, dw) = (backward_input(&saved, &w, &dy).unwrap(), backward_weight(&saved, &dy).unwrap());

        let (vx, vw) = (Var::from_tensor(&x).unwrap(), Var::from_tensor(&w).unwrap());
        let oracle = candle_nn::ops::rms_norm_slow(&vx, &vw, EPS as f32).unwrap();
        close(&y, &oracle, 1e-6);
        let grads = (oracle * &dy).unwrap().sum_all().unwrap().backward().unwrap();
        close(&dx, grads.get(&vx).unwrap(), 1e-5);
        close(&dw, grads.get(&vw).unwrap(), 1e-5);

        let case = Case::new(vec![x, w], dy, |v| {
            let scale = (v[0].sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?.recip()?;
            v[0].broadcast_mul(&scale)?.broadcast_mul(&v[1])
        });
        case.check(&[&dx, &dw], 1e-5);
    }

    #[test]
    fn kernel_equals_generic() {
        let (x, w, dy) = (random(&[9, 33], 4), random(&[33], 5), random(&[9, 33], 6));
        let slow = generic(&x, &w, EPS).unwrap();
        let (fast, scale) = kernel::forward(&x, &w, EPS).unwrap();
        close(&fast, &slow, 1e-6);
        let saved = Saved { x: x.clone(), eps: EPS, scale: None };
        close(&scale, &saved.scale(&x).unwrap(), 1e-6);
        // A transposed view is not contiguous, which sends it down the generic path.
        let strided = dy.t().unwrap().contiguous().unwrap().t().unwrap();
        let slow = backward_input(&saved, &w, &strided).unwrap();
        close(&kernel::backward_input(&x, &scale, &w, &dy).unwrap(), &slow, 1e-6);
    }
}

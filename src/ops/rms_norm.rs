//! RMSNorm: y = w ∘ x · s, s = (mean(x²) + eps)^(-1/2) per row; x, y: [N, d], w: [d], s: [N]. In f32, rounded once.
//!
//! Backward, with z = w ∘ dy: dx = s z − x s³ ⟨z, x⟩ / d; dw = Σ_n dy ∘ x s.

#![allow(unsafe_code, reason = "results in memory that holds nothing yet")]

use super::fast_math::vectorised;
use super::fresh::{Unwritten, filled};
use super::{fused, output, with_f32};
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
    } else {
        (generic(x, weight, eps)?, None)
    };
    Ok((y, Saved { x: x.clone(), eps, scale }))
}

/// dy: [N, d] -> dx: [N, d]
pub fn backward_input(saved: &Saved, weight: &Tensor, dy: &Tensor) -> Result<Tensor> {
    if let Some(scale) = saved.scale.as_ref().filter(|_| fused(&[&saved.x, weight, dy])) {
        return kernel::backward_input(&saved.x, scale, weight, dy);
    }
    let (x, dy) = (saved.x.to_dtype(DType::F32)?, dy.to_dtype(DType::F32)?);
    let (d, scale) = (x.dim(D::Minus1)? as f64, saved.scale(&x)?);
    let z = dy.broadcast_mul(&weight.to_dtype(DType::F32)?)?;
    let pull = ((&z * &x)?.sum_keepdim(D::Minus1)? * (scale.sqr()? / d)?)?;
    Ok((z - x.broadcast_mul(&pull)?)?.broadcast_mul(&scale)?.to_dtype(saved.x.dtype())?)
}

/// dy: [N, d] -> dw: [d], f32
pub fn backward_weight(saved: &Saved, dy: &Tensor) -> Result<Tensor> {
    let x = saved.x.to_dtype(DType::F32)?;
    let normed = x.broadcast_mul(&saved.scale(&x)?)?;
    Ok((dy.to_dtype(DType::F32)? * normed)?.sum(0)?)
}

/// The body for any device: candle's fused kernel, in f32 whatever the compute type. It keeps no s.
fn generic(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let (wide, weight) = (x.to_dtype(DType::F32)?.contiguous()?, weight.to_dtype(DType::F32)?);
    Ok(candle_nn::ops::rms_norm(&wide, &weight, eps as f32)?.to_dtype(x.dtype())?)
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

//! The gate of Llama's MLP: y = silu(g) ∘ u, silu(g) = g σ(g); g, u, y: [N, d].
//!
//! Backward: du = dy silu(g); dg = dy u σ(g) (1 + g (1 − σ(g))).

use super::fast_math::{sigmoid, vectorised};
use super::{fused, with_f32};
use anyhow::Result;
use candle_core::Tensor;
use rayon::prelude::*;

/// Elements per task: large enough to pay for a task, small enough to stay in the L2 cache.
const CHUNK: usize = 1 << 14;

/// g, u: [N, d] -> y: [N, d]
pub fn forward(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if fused(&[gate, up]) {
        return kernel::forward(gate, up);
    }
    Ok((candle_nn::ops::silu(gate)? * up)?)
}

/// dy: [N, d] -> (dg, du): [N, d] each
pub fn backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    if fused(&[gate, up, dy]) { kernel::backward(gate, up, dy) } else { generic_backward(gate, up, dy) }
}

fn generic_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let sigma = candle_nn::ops::sigmoid(gate)?;
    let silu = (gate * &sigma)?;
    let du = (dy * &silu)?;
    // σ (1 + g (1 − σ)) = σ + silu (1 − σ)
    let slope = (&sigma + (&silu * (1.0 - &sigma)?)?)?;
    Ok((((dy * up)? * slope)?, du))
}

mod kernel {
    use super::*;

    pub fn forward(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let mut y = vec![0f32; gate.elem_count()];
        with_f32([gate, up], |[g, u]| {
            y.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).zip(u.par_chunks(CHUNK)).for_each(|((y, g), u)| {
                vectorised(|| {
                    for ((y, &g), &u) in y.iter_mut().zip(g).zip(u) {
                        *y = g * sigmoid(g) * u;
                    }
                });
            });
        })?;
        Ok(Tensor::from_vec(y, gate.shape(), gate.device())?)
    }

    pub fn backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
        let mut dg = vec![0f32; gate.elem_count()];
        let mut du = vec![0f32; gate.elem_count()];
        with_f32([gate, up, dy], |[g, u, dy]| {
            let out = dg.par_chunks_mut(CHUNK).zip(du.par_chunks_mut(CHUNK));
            let input = g.par_chunks(CHUNK).zip(u.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK));
            out.zip(input).for_each(|((dg, du), ((g, u), dy))| {
                vectorised(|| {
                    for i in 0..g.len().min(dy.len()) {
                        let sigma = sigmoid(g[i]);
                        let silu = g[i] * sigma;
                        du[i] = dy[i] * silu;
                        dg[i] = dy[i] * u[i] * (sigma + silu * (1.0 - sigma));
                    }
                });
            });
        })?;
        let tensor = |values| Tensor::from_vec(values, gate.shape(), gate.device());
        Ok((tensor(dg)?, tensor(du)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Case, close, random};
    use candle_core::Var;

    #[test]
    fn matches_autograd_and_finite_differences() {
        let (g, u, dy) = (random(&[4, 9], 1), random(&[4, 9], 2), random(&[4, 9], 3));
        let g = (g * 4.0).unwrap();
        let (dg, du) = backward(&g, &u, &dy).unwrap();
        let (vg, vu) = (Var::from_tensor(&g).unwrap(), Var::from_tensor(&u).unwrap());
        let y = (candle_nn::ops::silu(&vg).unwrap() * vu.as_tensor()).unwrap();
        close(&forward(&g, &u).unwrap(), &y, 1e-6);
        let grads = (y * &dy).unwrap().sum_all().unwrap().backward().unwrap();
        close(&dg, grads.get(&vg).unwrap(), 1e-5);
        close(&du, grads.get(&vu).unwrap(), 1e-5);
        let case = Case::new(vec![g, u], dy, |v| v[0].silu()? * &v[1]);
        case.check(&[&dg, &du], 1e-5);
    }

    #[test]
    fn kernel_equals_generic() {
        let (g, u, dy) = (random(&[300, 77], 4), random(&[300, 77], 5), random(&[300, 77], 6));
        let g = (g * 20.0).unwrap();
        let (slow_g, slow_u) = generic_backward(&g, &u, &dy).unwrap();
        let (fast_g, fast_u) = kernel::backward(&g, &u, &dy).unwrap();
        close(&fast_g, &slow_g, 1e-6);
        close(&fast_u, &slow_u, 1e-6);
        let slow = (candle_nn::ops::silu(&g).unwrap() * &u).unwrap();
        close(&kernel::forward(&g, &u).unwrap(), &slow, 1e-6);
    }
}

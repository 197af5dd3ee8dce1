//! A gate, of an MLP or of what attention returns: y = act(g) ∘ u; g, u, y: [N, d].
//!
//! Backward: du = dy act(g); dg = dy u act'(g).

#![allow(unsafe_code, reason = "results in memory that holds nothing yet, and GPU kernels")]

use super::activation::Activation;
use super::fast_math::vectorised;
use super::fresh::{Unwritten, filled};
use super::{fused, gpu, output, with_f32};
use anyhow::Result;
use candle_core::{DType, Tensor};
use rayon::prelude::*;

/// Elements per task: large enough to pay for a task, small enough to stay in the L2 cache.
const CHUNK: usize = 1 << 14;

/// g, u: [N, d] -> y: [N, d]
pub fn forward(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    if fused(&[gate, up]) {
        return kernel::forward(gate, up, activation);
    }
    if gpu::GATED_MLP.serve(&[gate, up]) {
        return on_gpu::forward(gate, up, activation);
    }
    // In f32, as backward: candle's bf16 forms round after every operation within an activation.
    let y = (activation.forward(&gate.to_dtype(DType::F32)?)? * up.to_dtype(DType::F32)?)?;
    Ok(y.to_dtype(gate.dtype())?)
}

/// dy: [N, d] -> (dg, du): [N, d] each
pub fn backward(gate: &Tensor, up: &Tensor, dy: &Tensor, activation: Activation) -> Result<(Tensor, Tensor)> {
    if fused(&[gate, up, dy]) {
        return kernel::backward(gate, up, dy, activation);
    }
    if gpu::GATED_MLP.serve(&[gate, up, dy]) {
        return on_gpu::backward(gate, up, dy, activation);
    }
    let [gate_wide, up, dy] = [gate, up, dy].map(|x| x.to_dtype(DType::F32));
    let (up, dy) = (up?, dy?);
    let (value, slope) = activation.with_slope(&gate_wide?)?;
    let narrow = |x: Tensor| x.to_dtype(gate.dtype());
    Ok((narrow(((&dy * up)? * slope)?)?, narrow((dy * value)?)?))
}

fn check(gate: &Tensor, others: &[&Tensor]) -> Result<()> {
    let fit = others.iter().all(|other| other.dims() == gate.dims());
    anyhow::ensure!(
        fit,
        "gate {:?} does not fit {:?}",
        gate.dims(),
        others.iter().map(|x| x.dims()).collect::<Vec<_>>()
    );
    Ok(())
}

mod on_gpu {
    use super::*;
    use gpu::{Arg, GATED_MLP, Launch, unwritten};

    fn number(activation: Activation) -> Arg<'static> {
        // As elementwise.cu numbers them.
        Arg::Small(match activation {
            Activation::Silu => 0,
            Activation::GeluTanh => 1,
            Activation::Sigmoid => 2,
        })
    }

    pub fn forward(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
        check(gate, &[up])?;
        let (n, up) = (gate.elem_count(), up.to_dtype(gate.dtype())?);
        let launch = Launch::map(&GATED_MLP, "gated_mlp_forward", gate.dtype(), n);
        // SAFETY: all of one shape and type. The kernel writes all of y.
        unsafe {
            let y = unwritten(gate.shape(), gate.dtype(), gate.device())?;
            launch.run(&[Arg::In(gate), Arg::In(&up), Arg::Out(&y), number(activation), Arg::Large(n as u64)])?;
            Ok(y)
        }
    }

    pub fn backward(gate: &Tensor, up: &Tensor, dy: &Tensor, activation: Activation) -> Result<(Tensor, Tensor)> {
        check(gate, &[up, dy])?;
        let (n, dtype) = (gate.elem_count(), gate.dtype());
        let (up, dy) = (up.to_dtype(dtype)?, dy.to_dtype(dtype)?);
        let launch = Launch::map(&GATED_MLP, "gated_mlp_backward", dtype, n);
        // SAFETY: all of one shape and type. The kernel writes all of both gradients.
        unsafe {
            let [dg, du] = [(); 2].map(|()| unwritten(gate.shape(), dtype, gate.device()));
            let (dg, du) = (dg?, du?);
            launch.run(&[
                Arg::In(gate),
                Arg::In(&up),
                Arg::In(&dy),
                Arg::Out(&dg),
                Arg::Out(&du),
                number(activation),
                Arg::Large(n as u64),
            ])?;
            Ok((dg, du))
        }
    }
}

mod kernel {
    use super::*;

    pub fn forward(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
        check(gate, &[up])?;
        let y = with_f32([gate, up], |[g, u]| {
            let fill = |y: &mut Unwritten| {
                y.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).zip(u.par_chunks(CHUNK)).for_each(|((y, g), u)| {
                    // A function for each: a loop that gets the activation as a value branches on it, and then is no loop of vectors.
                    match activation {
                        Activation::Silu => fill(y, g, u, |g| Activation::Silu.at(g)),
                        Activation::GeluTanh => fill(y, g, u, |g| Activation::GeluTanh.at(g)),
                        Activation::Sigmoid => fill(y, g, u, |g| Activation::Sigmoid.at(g)),
                    }
                });
            };
            // SAFETY: g and u have as many values as y.
            unsafe { filled(g.len(), fill) }
        })?;
        output(y, gate.shape(), gate)
    }

    /// `at` gives an activation's value and slope.
    fn fill(y: &mut Unwritten, g: &[f32], u: &[f32], at: impl Fn(f32) -> (f32, f32)) {
        vectorised!({
            for ((y, &g), &u) in y.iter_mut().zip(g).zip(u) {
                y.write(at(g).0 * u);
            }
        });
    }

    pub fn backward(gate: &Tensor, up: &Tensor, dy: &Tensor, activation: Activation) -> Result<(Tensor, Tensor)> {
        check(gate, &[up, dy])?;
        let (dg, du) = with_f32([gate, up, dy], |[g, u, dy]| {
            let fill = |dg: &mut Unwritten, du: &mut Unwritten| {
                let out = dg.par_chunks_mut(CHUNK).zip(du.par_chunks_mut(CHUNK));
                let input = g.par_chunks(CHUNK).zip(u.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK));
                out.zip(input).for_each(|(out, ((g, u), dy))| match activation {
                    Activation::Silu => fill_backward(out, (g, u, dy), |g| Activation::Silu.at(g)),
                    Activation::GeluTanh => fill_backward(out, (g, u, dy), |g| Activation::GeluTanh.at(g)),
                    Activation::Sigmoid => fill_backward(out, (g, u, dy), |g| Activation::Sigmoid.at(g)),
                });
            };
            let mut du = vec![];
            // SAFETY: g, u and dy have as many values as dg and du.
            let dg = unsafe { filled(g.len(), |dg| du = filled(u.len(), |du| fill(dg, du))) };
            (dg, du)
        })?;
        Ok((output(dg, gate.shape(), gate)?, output(du, gate.shape(), gate)?))
    }

    fn fill_backward(
        (dg, du): (&mut Unwritten, &mut Unwritten),
        (g, u, dy): (&[f32], &[f32], &[f32]),
        at: impl Fn(f32) -> (f32, f32),
    ) {
        vectorised!({
            for ((dg, du), ((&g, &u), &dy)) in dg.iter_mut().zip(du).zip(g.iter().zip(u).zip(dy)) {
                let (value, slope) = at(g);
                du.write(dy * value);
                dg.write(dy * u * slope);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Case, close, random};
    use candle_core::Var;

    /// From the definitions, so that neither body above is tested against itself.
    fn textbook(x: &Tensor, activation: Activation) -> candle_core::Result<Tensor> {
        match activation {
            Activation::Silu => x / (x.neg()?.exp()? + 1.0)?,
            Activation::Sigmoid => (x.neg()?.exp()? + 1.0)?.recip(),
            Activation::GeluTanh => {
                let z = ((x + (x.powf(3.0)? * 0.044715)?)? * (2.0 / std::f64::consts::PI).sqrt())?;
                (x * 0.5)? * (z.tanh()? + 1.0)?
            }
        }
    }

    #[test]
    fn matches_autograd_and_finite_differences() {
        for activation in Activation::ALL {
            let (g, u, dy) = (random(&[4, 9], 1), random(&[4, 9], 2), random(&[4, 9], 3));
            let g = (g * 4.0).unwrap();
            let (dg, du) = backward(&g, &u, &dy, activation).unwrap();
            let (vg, vu) = (Var::from_tensor(&g).unwrap(), Var::from_tensor(&u).unwrap());
            let y = match activation {
                Activation::Silu => candle_nn::ops::silu(&vg).unwrap(),
                Activation::GeluTanh => vg.gelu().unwrap(),
                Activation::Sigmoid => candle_nn::ops::sigmoid(&vg).unwrap(),
            };
            let y = (y * vu.as_tensor()).unwrap();
            close(&forward(&g, &u, activation).unwrap(), &y, 1e-6);
            let grads = (y * &dy).unwrap().sum_all().unwrap().backward().unwrap();
            close(&dg, grads.get(&vg).unwrap(), 1e-5);
            close(&du, grads.get(&vu).unwrap(), 1e-5);
            let case = Case::new(vec![g, u], dy, move |v| textbook(&v[0], activation)? * &v[1]);
            case.check(&[&dg, &du], 1e-5);
        }
    }

    /// The body for any device: the same as its widened values in f32, rounded once.
    #[test]
    fn half_precision_is_rounded_once() {
        for activation in Activation::ALL {
            let strided = |seed| random(&[300, 77], seed).t().unwrap().contiguous().unwrap().t().unwrap();
            let half = |x: &Tensor| x.to_dtype(DType::BF16).unwrap();
            let wide = |x: &Tensor| half(x).to_dtype(DType::F32).unwrap();
            let (g, u, dy) = ((strided(1) * 4.0).unwrap(), strided(2), strided(3));
            let y = forward(&half(&g), &half(&u), activation).unwrap();
            close(&y, &half(&forward(&wide(&g), &wide(&u), activation).unwrap()), 1e-4);
            let (dg, du) = backward(&half(&g), &half(&u), &half(&dy), activation).unwrap();
            let exact = backward(&wide(&g), &wide(&u), &wide(&dy), activation).unwrap();
            close(&dg, &half(&exact.0), 1e-4);
            close(&du, &half(&exact.1), 1e-4);
        }
    }

    #[test]
    fn kernel_equals_generic() {
        for activation in Activation::ALL {
            let (g, u, dy) = (random(&[300, 77], 4), random(&[300, 77], 5), random(&[300, 77], 6));
            let g = (g * 8.0).unwrap();
            // Strided views go down the generic path.
            let strided = |x: &Tensor| x.t().unwrap().contiguous().unwrap().t().unwrap();
            let (slow_g, slow_u) = backward(&strided(&g), &strided(&u), &strided(&dy), activation).unwrap();
            let (fast_g, fast_u) = kernel::backward(&g, &u, &dy, activation).unwrap();
            close(&fast_g, &slow_g, 1e-6);
            close(&fast_u, &slow_u, 1e-6);
            let slow = forward(&strided(&g), &strided(&u), activation).unwrap();
            close(&kernel::forward(&g, &u, activation).unwrap(), &slow, 1e-6);
        }
    }
}

//! Soft-capping, which Gemma 2 applies to attention scores and logits: y = c tanh(x / c), so that |y| < c.
//!
//! Backward: dx = dy (1 − (y / c)²), which needs only y.

#![allow(unsafe_code, reason = "GPU kernels")]

use super::fast_math::tanh;
use super::gpu::{self, Arg, Launch, unwritten};
use anyhow::Result;
use candle_core::Tensor;

/// x: any shape -> y
pub fn forward(x: &Tensor, cap: f64) -> Result<Tensor> {
    if gpu::SOFTCAP.serve(&[x]) {
        let n = x.elem_count();
        let launch = Launch::map(&gpu::SOFTCAP, "softcap_forward", x.dtype(), n);
        // SAFETY: of one shape and type. The kernel writes all of y.
        unsafe {
            let y = unwritten(x.shape(), x.dtype(), x.device())?;
            launch.run(&[Arg::In(x), Arg::Out(&y), Arg::Float(cap), Arg::Large(n as u64)])?;
            return Ok(y);
        }
    }
    Ok(((x / cap)?.tanh()? * cap)?)
}

/// (y, dy) -> dx, all of one shape
pub fn backward(y: &Tensor, dy: &Tensor, cap: f64) -> Result<Tensor> {
    if y.dims() == dy.dims() && y.dtype() == dy.dtype() && gpu::SOFTCAP.serve(&[y, dy]) {
        let n = y.elem_count();
        let launch = Launch::map(&gpu::SOFTCAP, "softcap_backward", y.dtype(), n);
        // SAFETY: all of one shape and type. The kernel writes all of dx.
        unsafe {
            let dx = unwritten(y.shape(), y.dtype(), y.device())?;
            launch.run(&[Arg::In(y), Arg::In(dy), Arg::Out(&dx), Arg::Float(cap), Arg::Large(n as u64)])?;
            return Ok(dx);
        }
    }
    Ok((dy * (1.0 - (y / cap)?.sqr()?)?)?)
}

/// y of one value, for kernels.
#[inline(always)]
pub fn cap(x: f32, cap: f32) -> f32 {
    cap * tanh(x / cap)
}

/// dy / dx at y, for kernels.
#[inline(always)]
pub fn slope(y: f32, cap: f32) -> f32 {
    let share = y / cap;
    1.0 - share * share
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Case, close, random};
    use candle_core::Var;

    #[test]
    fn matches_autograd_finite_differences_and_the_scalar_form() {
        let (x, dy) = ((random(&[4, 9], 1) * 30.0).unwrap(), random(&[4, 9], 2));
        let y = forward(&x, 10.0).unwrap();
        let dx = backward(&y, &dy, 10.0).unwrap();
        let var = Var::from_tensor(&x).unwrap();
        let oracle = ((var.as_tensor() / 10.0).unwrap().tanh().unwrap() * 10.0).unwrap();
        close(&y, &oracle, 1e-6);
        let grads = (oracle * &dy).unwrap().sum_all().unwrap().backward().unwrap();
        close(&dx, grads.get(&var).unwrap(), 1e-5);
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for ((x, y), (dy, dx)) in flat(&x).into_iter().zip(flat(&y)).zip(flat(&dy).into_iter().zip(flat(&dx))) {
            assert!((cap(x, 10.0) - y).abs() < 2e-6);
            assert!((dy * slope(y, 10.0) - dx).abs() < 1e-6);
        }
        Case::new(vec![x], dy, |v| (&v[0] / 10.0)?.tanh()? * 10.0).check(&[&dx], 1e-5);
    }
}

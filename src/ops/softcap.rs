//! Soft-capping, which Gemma 2 applies to attention scores and logits: y = c tanh(x / c), so that |y| < c.
//!
//! Backward: dx = dy (1 − (y / c)²), which needs only y.

use super::fast_math::tanh;
use anyhow::Result;
use candle_core::Tensor;

/// x: any shape -> y
pub fn forward(x: &Tensor, cap: f64) -> Result<Tensor> {
    Ok(((x / cap)?.tanh()? * cap)?)
}

/// (y, dy) -> dx, all of one shape
pub fn backward(y: &Tensor, dy: &Tensor, cap: f64) -> Result<Tensor> {
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

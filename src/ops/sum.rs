//! Sums: x + y of equal shapes, for residual connections and for gradients; Σ x², and what a sum tells of a tensor; and of
//! numbers on the host.

#![allow(unsafe_code, reason = "a result in memory that holds nothing yet, and GPU kernels")]

use super::fast_math::vectorised;
use super::fresh::{Unwritten, filled};
use super::gpu::{self, Arg, Launch};
use super::scalar::{Scalar, wide};
use super::traffic::counted;
use super::{cast, fused, output, with_f32};
use anyhow::Result;
use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

const CHUNK: usize = 1 << 14;

/// x + y, in the type of x.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let narrows = x.dtype() != DType::F32 && y.dtype() == DType::F32 && x.dims() == y.dims();
    if narrows && gpu::SUM.serve(&[x, y]) {
        let n = x.elem_count();
        let launch = Launch::map(&gpu::SUM, "add_narrowed", x.dtype(), n);
        // SAFETY: all of one shape, y in f32. The kernel writes all of the sum.
        unsafe {
            let sum = gpu::unwritten(x.shape(), x.dtype(), x.device())?;
            launch.run(&[Arg::In(x), Arg::In(y), Arg::Out(&sum), Arg::Large(n as u64)])?;
            return Ok(sum);
        }
    }
    if !fused(&[x, y]) || x.dims() != y.dims() {
        return Ok(counted((x + cast(y, x.dtype())?)?, &[x, y]));
    }
    let out = with_f32([x, y], |[x, y]| {
        let input = x.par_chunks(CHUNK).zip(y.par_chunks(CHUNK));
        let fill = |(out, (x, y)): (&mut Unwritten, (&[f32], &[f32]))| {
            vectorised!({
                for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
                    out.write(x + y);
                }
            });
        };
        // SAFETY: x and y have as many values as the result.
        unsafe { filled(x.len(), |out| out.par_chunks_mut(CHUNK).zip(input).for_each(fill)) }
    })?;
    output(out, x.shape(), x)
}

/// `factor` · x
pub fn scaled(x: &Tensor, factor: f64) -> Result<Tensor> {
    Ok(counted((x * factor)?, &[x]))
}

/// `factor` · x, or x where there is none.
pub fn scaled_by(x: Tensor, factor: Option<f64>) -> Result<Tensor> {
    match factor {
        Some(factor) => scaled(&x, factor),
        None => Ok(x),
    }
}

/// Σ x², in f64 if the device has it, summed in a fixed order.
pub fn square_sum(x: &Tensor) -> Result<Scalar> {
    if !fused(&[x]) {
        let rows = x.to_dtype(DType::F32)?.sqr()?.sum(D::Minus1)?;
        return Scalar::of(rows.to_dtype(wide(x.device()))?.sum_all()?);
    }
    let parts: Vec<f64> = with_f32([x], |[x]| {
        let part = |chunk: &[f32]| chunk.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
        x.par_chunks(CHUNK).map(part).collect()
    })?;
    Ok(Scalar::Known(parts.iter().sum()))
}

/// Whether every value is finite.
pub fn is_finite(x: &Tensor) -> Result<bool> {
    // 0 · x is NaN just where x is not finite.
    Ok((x * 0.0)?.sum_all()?.to_dtype(DType::F32)?.to_scalar::<f32>()? == 0.0)
}

/// Σ x of numbers on the host, in their order. Of none it is 0, where Rust's own sum of no floats is −0, which is shown.
pub fn total(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(0.0, |sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{close, random};
    use candle_core::Device;

    #[test]
    fn kernels_equal_candle() {
        let (x, y) = (random(&[200, 170], 1), random(&[200, 170], 2));
        close(&add(&x, &y).unwrap(), &(&x + &y).unwrap(), 1e-7);
        let expected = f64::from(x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
        assert!((square_sum(&x).unwrap().read().unwrap() / expected - 1.0).abs() < 1e-5);
    }

    #[test]
    fn one_value_that_is_not_finite_is_enough() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let tensor = |last: f32| Tensor::new(&[[-1.0, 0.0], [3e4, last]], &Device::Cpu).unwrap();
            let finite = |last: f32| is_finite(&tensor(last).to_dtype(dtype).unwrap()).unwrap();
            assert!(finite(-3e4) && !finite(f32::NAN) && !finite(f32::INFINITY) && !finite(f32::NEG_INFINITY));
        }
        // However large their sum.
        assert!(is_finite(&Tensor::full(f32::MAX, 8, &Device::Cpu).unwrap()).unwrap());
    }

    #[test]
    fn the_sum_of_nothing_is_shown_without_a_sign() {
        assert_eq!(format!("{} {}", total([]), total([-0.0])), "0 0");
        assert_eq!(total([0.5, -0.25]), 0.25);
    }
}

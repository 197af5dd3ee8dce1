//! Rotary position embedding in Hugging Face's half-split layout.
//!
//! For each head, with halves (a, b) of its D values and angle θ of its row: (a cos θ − b sin θ, b cos θ + a sin θ).
//! The map is a rotation, perhaps times a magnitude, so its backward is the same map with −θ. x: [N, H · D]; cos, sin:
//! [N, D / 2] in f32.

#![allow(unsafe_code, reason = "a result in memory that holds nothing yet, and GPU kernels")]

use super::fast_math::vectorised;
use super::fresh::{Unwritten, filled};
use super::gpu::{self, Arg, Launch};
use super::{fused, output, with_f32};
use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

/// cos and sin of every row's angles, [N, D / 2] each.
#[derive(Clone)]
pub struct Angles {
    cos: Tensor,
    sin: Tensor,
}

/// Consecutive positions of a sequence and the frequencies that turn them.
pub struct Stretch {
    pub start: usize,
    pub length: usize,
    /// [D / 2]
    pub frequencies: Vec<f32>,
    /// Factor of cos and sin (YaRN); 1 otherwise.
    pub magnitude: f32,
}

impl Angles {
    /// Angles of the rows of `stretches`, one stretch after another: position times frequency, in f32 as in
    /// transformers.
    pub fn new(stretches: &[Stretch], device: &Device) -> Result<Self> {
        let half = stretches.first().map_or(0, |stretch| stretch.frequencies.len());
        let rows: Vec<(usize, &Stretch)> = stretches
            .iter()
            .flat_map(|stretch| (stretch.start..stretch.start + stretch.length).map(move |p| (p, stretch)))
            .collect();
        let table = |f: fn(f64) -> f64| {
            let mut values = vec![0f32; rows.len() * half];
            values.par_chunks_mut(half.max(1)).zip(&rows).for_each(|(values, (position, stretch))| {
                for (value, frequency) in values.iter_mut().zip(&stretch.frequencies) {
                    *value = f(f64::from(*position as f32 * frequency)) as f32 * stretch.magnitude;
                }
            });
            Tensor::from_vec(values, (rows.len(), half), device)
        };
        Ok(Self { cos: table(f64::cos)?, sin: table(f64::sin)? })
    }
}

/// x: [N, H · D] -> y: [N, H · D]
pub fn forward(x: &Tensor, angles: &Angles) -> Result<Tensor> {
    rotate(x, angles, 1.0)
}

/// dy: [N, H · D] -> dx: [N, H · D]
pub fn backward(dy: &Tensor, angles: &Angles) -> Result<Tensor> {
    rotate(dy, angles, -1.0)
}

fn rotate(x: &Tensor, angles: &Angles, sign: f32) -> Result<Tensor> {
    let all = [x, &angles.cos, &angles.sin];
    if fused(&all) {
        kernel(x, angles, sign)
    } else if gpu::ROPE.serve(&all) {
        on_gpu(x, angles, sign)
    } else {
        generic(x, angles, sign)
    }
}

fn generic(x: &Tensor, angles: &Angles, sign: f32) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    let head_dim = 2 * angles.cos.dim(1)?;
    let heads = x.to_dtype(DType::F32)?.reshape((1, n, width / head_dim, head_dim))?.contiguous()?;
    let sin = if sign < 0.0 { angles.sin.neg()? } else { angles.sin.clone() };
    // candle's fused rotation of halves, available on every device. It has no backward pass, which is this with the
    // sign of sin flipped.
    let rotated = candle_nn::rotary_emb::rope_thd(&heads, &angles.cos, &sin)?;
    Ok(rotated.reshape((n, width))?.to_dtype(x.dtype())?)
}

/// (N, H · D, D / 2), if the angles fit x.
fn sizes(x: &Tensor, angles: &Angles) -> Result<(usize, usize, usize)> {
    let (n, width) = x.dims2()?;
    let (rows, half) = angles.cos.dims2()?;
    let fits =
        rows == n && half > 0 && width > 0 && width.is_multiple_of(2 * half) && angles.sin.dims2()? == (rows, half);
    anyhow::ensure!(fits, "angles of {rows} rows and {half} pairs do not fit {:?}", x.dims());
    Ok((n, width, half))
}

fn on_gpu(x: &Tensor, angles: &Angles, sign: f32) -> Result<Tensor> {
    let (n, width, half) = sizes(x, angles)?;
    let chunks = half.div_ceil(gpu::PACK);
    let places = n * (width / (2 * half)) * chunks;
    let launch = Launch::threads(&gpu::ROPE, "rope", x.dtype(), places);
    // SAFETY: checked above; angles are f32. The kernel writes all of y.
    unsafe {
        let y = gpu::unwritten((n, width), x.dtype(), x.device())?;
        launch.run(&[
            Arg::In(x),
            Arg::In(&angles.cos),
            Arg::In(&angles.sin),
            Arg::Out(&y),
            Arg::Small(width),
            Arg::Small(half),
            Arg::Small(chunks),
            Arg::Float(sign.into()),
            Arg::Large(places as u64),
        ])?;
        Ok(y)
    }
}

fn kernel(x: &Tensor, angles: &Angles, sign: f32) -> Result<Tensor> {
    let (n, width, half) = sizes(x, angles)?;
    let y = with_f32([x, &angles.cos, &angles.sin], |[x, cos, sin]| {
        let angles = cos.par_chunks(half).zip(sin.par_chunks(half));
        let row = |y: &mut Unwritten, x: &[f32], cos: &[f32], sin: &[f32]| {
            vectorised!({
                for (y, x) in y.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
                    let ((first, second), (a, b)) = (y.split_at_mut(half), x.split_at(half));
                    let pairs = first.iter_mut().zip(second).zip(a.iter().zip(b));
                    for (((first, second), (a, b)), (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
                        let sin = sin * sign;
                        first.write(a * cos - b * sin);
                        second.write(b * cos + a * sin);
                    }
                }
            });
        };
        // SAFETY: x has as many rows as y, and a row consists of whole heads of 2 · half values each.
        unsafe {
            filled(n * width, |y| {
                let rows = y.par_chunks_mut(width).zip(x.par_chunks(width)).zip(angles);
                rows.for_each(|((y, x), (cos, sin))| row(y, x, cos, sin));
            })
        }
    })?;
    output(y, (n, width), x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Case, close, random};

    fn angles(n: usize, half: usize) -> Angles {
        let angle = random(&[n, half], 9);
        Angles { cos: angle.cos().unwrap(), sin: angle.sin().unwrap() }
    }

    #[test]
    fn matches_candle_and_finite_differences() {
        let (n, heads, d) = (5, 3, 8);
        let (x, dy, angles) = (random(&[n, heads * d], 1), random(&[n, heads * d], 2), angles(n, d / 2));
        let y = forward(&x, &angles).unwrap();
        let four = x.reshape((1, n, heads, d)).unwrap().transpose(1, 2).unwrap().contiguous().unwrap();
        let oracle = candle_nn::rotary_emb::rope_slow(&four, &angles.cos, &angles.sin).unwrap();
        let oracle = oracle.transpose(1, 2).unwrap().contiguous().unwrap().reshape((n, heads * d)).unwrap();
        close(&y, &oracle, 1e-6);

        let dx = backward(&dy, &angles).unwrap();
        let (cos, sin) = (angles.cos.to_dtype(DType::F64).unwrap(), angles.sin.to_dtype(DType::F64).unwrap());
        let case = Case::new(vec![x], dy, move |v| {
            let x = v[0].reshape((n, heads, d))?;
            let (a, b) = (x.narrow(2, 0, d / 2)?, x.narrow(2, d / 2, d / 2)?);
            let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?);
            let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
            let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
            Tensor::cat(&[first, second], 2)?.reshape((n, heads * d))
        });
        case.check(&[&dx], 1e-5);
    }

    #[test]
    fn kernel_equals_generic() {
        let (x, angles) = (random(&[7, 24], 3), angles(7, 6));
        close(&kernel(&x, &angles, -1.0).unwrap(), &generic(&x, &angles, -1.0).unwrap(), 1e-7);
    }

    #[test]
    fn angles_of_other_rows_are_refused() {
        let angles = angles(7, 6);
        for shape in [[6, 24], [8, 24], [7, 18], [7, 0]] {
            assert!(kernel(&random(&shape, 3), &angles, 1.0).is_err(), "{shape:?}");
        }
    }
}

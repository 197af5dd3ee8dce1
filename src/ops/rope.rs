//! Rotary position embedding, in Hugging Face's half-split layout or in pairs of neighbours, of whole heads or their beginnings.
//!
//! Of a head's D values the first R are rotated, in pairs (a, b) with the angle θ of its row: (a cos θ − b sin θ, b cos θ +
//! a sin θ). A pair is the values i and R / 2 + i, or 2 i and 2 i + 1. The map is a rotation, perhaps times a magnitude, so its
//! backward is the same map with −θ. x: [N, H · D]; cos, sin: [N, R / 2] in f32.

#![allow(unsafe_code, reason = "a result in memory that holds nothing yet, and GPU kernels")]

use super::fast_math::vectorised;
use super::fresh::{Unwritten, filled};
use super::gpu::{self, Arg, Launch};
use super::{fused, output, with_f32};
use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

/// What of a head is rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// D
    pub head_dim: usize,
    /// R: how many of a head's values are rotated, the first.
    pub rotary_dim: usize,
    /// Whether pairs are neighbours.
    pub interleaved: bool,
}

impl Heads {
    /// Whole heads, in halves.
    pub fn whole(head_dim: usize) -> Self {
        Self { head_dim, rotary_dim: head_dim, interleaved: false }
    }
}

/// cos and sin of every row's angles, [N, R / 2] each.
#[derive(Clone)]
pub struct Angles {
    cos: Tensor,
    sin: Tensor,
    heads: Heads,
}

/// Consecutive positions of a sequence and the frequencies that turn them.
pub struct Stretch {
    pub start: usize,
    pub length: usize,
    /// [R / 2]
    pub frequencies: Vec<f32>,
    /// Factor of cos and sin (YaRN); 1 otherwise.
    pub magnitude: f32,
}

impl Angles {
    /// Angles of the rows of `stretches`, one stretch after another: position times frequency, in f32 as in
    /// transformers. They turn whole heads.
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
        Ok(Self { cos: table(f64::cos)?, sin: table(f64::sin)?, heads: Heads::whole(2 * half) })
    }

    /// The same angles with magnitudes `factors` times as large, one for each row. Heads have to be rotated whole.
    pub fn times(&self, factors: Vec<f32>) -> Result<Self> {
        let factors = Tensor::from_vec(factors, (self.cos.dim(0)?, 1), self.cos.device())?;
        let scaled = |table: &Tensor| table.broadcast_mul(&factors);
        Ok(Self { cos: scaled(&self.cos)?, sin: scaled(&self.sin)?, heads: self.heads })
    }

    /// The same angles for heads that are rotated as `heads` says; R is twice the number of frequencies.
    pub fn of(self, heads: Heads) -> Self {
        Self { heads, ..self }
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
    let Heads { head_dim, rotary_dim, interleaved } = angles.heads;
    let heads = x.to_dtype(DType::F32)?.reshape((1, n, width / head_dim, head_dim))?;
    let sin = if sign < 0.0 { angles.sin.neg()? } else { angles.sin.clone() };
    let turned = heads.narrow(3, 0, rotary_dim)?;
    let turned = if interleaved { neighbours_to_halves(&turned)? } else { turned };
    // candle's fused rotation of halves, available on every device. It has no backward pass, which is this with the
    // sign of sin flipped.
    let mut rotated = candle_nn::rotary_emb::rope_thd(&turned.contiguous()?, &angles.cos, &sin)?;
    if interleaved {
        rotated = halves_to_neighbours(&rotated)?;
    }
    if rotary_dim < head_dim {
        rotated = Tensor::cat(&[&rotated, &heads.narrow(3, rotary_dim, head_dim - rotary_dim)?], 3)?;
    }
    Ok(rotated.reshape((n, width))?.to_dtype(x.dtype())?)
}

/// [1, N, H, R], the values 2 i and 2 i + 1 going to i and R / 2 + i.
fn neighbours_to_halves(x: &Tensor) -> Result<Tensor> {
    let (one, n, heads, r) = x.dims4()?;
    let pairs = x.contiguous()?.reshape((one, n, heads, r / 2, 2))?;
    Ok(pairs.transpose(3, 4)?.contiguous()?.reshape((one, n, heads, r))?)
}

/// The way back.
fn halves_to_neighbours(x: &Tensor) -> Result<Tensor> {
    let (one, n, heads, r) = x.dims4()?;
    let halves = x.reshape((one, n, heads, 2, r / 2))?;
    Ok(halves.transpose(3, 4)?.contiguous()?.reshape((one, n, heads, r))?)
}

/// (N, H · D, R / 2), if the angles fit x.
fn sizes(x: &Tensor, angles: &Angles) -> Result<(usize, usize, usize)> {
    let (n, width) = x.dims2()?;
    let (rows, half) = angles.cos.dims2()?;
    let Heads { head_dim, rotary_dim, .. } = angles.heads;
    let heads = width > 0 && width.is_multiple_of(head_dim) && rotary_dim <= head_dim;
    let fits = heads && rows == n && half > 0 && 2 * half == rotary_dim && angles.sin.dims2()? == (rows, half);
    anyhow::ensure!(fits, "angles of {rows} rows and {half} pairs do not fit {:?}", x.dims());
    Ok((n, width, half))
}

fn on_gpu(x: &Tensor, angles: &Angles, sign: f32) -> Result<Tensor> {
    let (n, width, half) = sizes(x, angles)?;
    let Heads { head_dim, rotary_dim, interleaved } = angles.heads;
    let chunks = half.div_ceil(gpu::PACK) + (head_dim - rotary_dim).div_ceil(gpu::PACK);
    let places = n * (width / head_dim) * chunks;
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
            Arg::Small(head_dim),
            Arg::Small(half),
            Arg::Small(interleaved.into()),
            Arg::Small(chunks),
            Arg::Float(sign.into()),
            Arg::Large(places as u64),
        ])?;
        Ok(y)
    }
}

fn kernel(x: &Tensor, angles: &Angles, sign: f32) -> Result<Tensor> {
    let (n, width, half) = sizes(x, angles)?;
    let Heads { head_dim, rotary_dim, interleaved } = angles.heads;
    let y = with_f32([x, &angles.cos, &angles.sin], |[x, cos, sin]| {
        let angles = cos.par_chunks(half).zip(sin.par_chunks(half));
        let row = |y: &mut Unwritten, x: &[f32], cos: &[f32], sin: &[f32]| {
            let angles = || cos.iter().zip(sin).map(|(cos, sin)| (cos, sin * sign));
            vectorised!({
                for (y, x) in y.chunks_exact_mut(head_dim).zip(x.chunks_exact(head_dim)) {
                    let ((y, y_rest), (x, x_rest)) = (y.split_at_mut(rotary_dim), x.split_at(rotary_dim));
                    if interleaved {
                        let pairs = y.chunks_exact_mut(2).zip(x.chunks_exact(2));
                        for ((y, x), (cos, sin)) in pairs.zip(angles()) {
                            y[0].write(x[0] * cos - x[1] * sin);
                            y[1].write(x[1] * cos + x[0] * sin);
                        }
                    } else {
                        let ((first, second), (a, b)) = (y.split_at_mut(half), x.split_at(half));
                        let pairs = first.iter_mut().zip(second).zip(a.iter().zip(b));
                        for (((first, second), (a, b)), (cos, sin)) in pairs.zip(angles()) {
                            first.write(a * cos - b * sin);
                            second.write(b * cos + a * sin);
                        }
                    }
                    for (y, x) in y_rest.iter_mut().zip(x_rest) {
                        y.write(*x);
                    }
                }
            });
        };
        // SAFETY: x has as many rows as y, and a row consists of whole heads, of which the first 2 · half values are rotated.
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
        Angles { cos: angle.cos().unwrap(), sin: angle.sin().unwrap(), heads: Heads::whole(2 * half) }
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

    /// Beginnings of heads, and pairs of neighbours: by the definition, value by value, both ways and in both bodies.
    #[test]
    fn parts_of_heads_and_neighbours_turn_as_defined() {
        let (n, heads, d, r) = (5, 3, 10, 6);
        let (x, whole) = (random(&[n, heads * d], 1), angles(n, r / 2));
        for (interleaved, sign) in [(false, 1.0), (false, -1.0), (true, 1.0), (true, -1.0)] {
            let angles = Angles { heads: Heads { head_dim: d, rotary_dim: r, interleaved }, ..whole.clone() };
            let [xs, cos, sin] = [&x, &angles.cos, &angles.sin].map(|t| t.to_vec2::<f32>().unwrap());
            let mut expected = xs.clone();
            for (row, pair, head) in
                (0..n).flat_map(|n| (0..r / 2).flat_map(move |i| (0..heads).map(move |h| (n, i, h))))
            {
                let (a, b) = if interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + r / 2) };
                let (a, b) = (head * d + a, head * d + b);
                let (cos, sin) = (cos[row][pair], sin[row][pair] * sign);
                expected[row][a] = xs[row][a] * cos - xs[row][b] * sin;
                expected[row][b] = xs[row][b] * cos + xs[row][a] * sin;
            }
            let expected = Tensor::new(expected, x.device()).unwrap();
            close(&kernel(&x, &angles, sign).unwrap(), &expected, 1e-6);
            close(&generic(&x, &angles, sign).unwrap(), &expected, 1e-6);
        }
    }

    #[test]
    fn angles_of_other_rows_are_refused() {
        let angles = angles(7, 6);
        for shape in [[6, 24], [8, 24], [7, 18], [7, 0]] {
            assert!(kernel(&random(&shape, 3), &angles, 1.0).is_err(), "{shape:?}");
        }
    }
}

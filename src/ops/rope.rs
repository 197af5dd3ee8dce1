//! Rotary position embedding in Hugging Face's half-split layout.
//!
//! For each head, with halves (a, b) of its D values and angle θ of its row: (a cos θ − b sin θ, b cos θ + a sin θ).
//! The map is a rotation, so its backward is the rotation by −θ. x: [N, H · D]; cos, sin: [N, D / 2] in f32.

use super::{fused, with_f32};
use crate::model::{ModelSpec, RopeScaling};
use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};
use rayon::prelude::*;

/// cos and sin of every row's angles, [N, D / 2] each.
#[derive(Clone)]
pub struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Angles {
    /// Angles for the given positions, one per row. Computed as transformers does, in f32.
    pub fn new(spec: &ModelSpec, positions: &[u32], device: &Device) -> Result<Self> {
        let frequencies = frequencies(spec);
        let angles: Vec<f32> = positions.iter().flat_map(|&p| frequencies.iter().map(move |f| p as f32 * f)).collect();
        let shape = (positions.len(), frequencies.len());
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = angles.par_iter().map(|&angle| f(f64::from(angle)) as f32).collect();
            Tensor::from_vec(values, shape, device)
        };
        Ok(Self { cos: table(f64::cos)?, sin: table(f64::sin)? })
    }
}

/// Inverse frequencies theta^(-2i/D), i < D / 2, after the spec's scaling.
fn frequencies(spec: &ModelSpec) -> Vec<f32> {
    let base = (0..spec.head_dim).step_by(2).map(|i| {
        let exponent = i as f32 / spec.head_dim as f32;
        1.0 / spec.rope_theta.powf(f64::from(exponent)) as f32
    });
    base.map(|frequency| match spec.rope_scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor as f32,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let wavelength = std::f64::consts::TAU / f64::from(frequency);
            let turns = original_max_position_embeddings / wavelength;
            if turns > high_freq_factor {
                frequency
            } else if turns < low_freq_factor {
                frequency / factor as f32
            } else {
                let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                ((1.0 - smooth) * f64::from(frequency) / factor + smooth * f64::from(frequency)) as f32
            }
        }
    })
    .collect()
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
    if fused(&[x, &angles.cos, &angles.sin]) { kernel(x, angles, sign) } else { generic(x, angles, sign) }
}

fn generic(x: &Tensor, angles: &Angles, sign: f32) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    let half = angles.cos.dim(1)?;
    let x = x.reshape((n, width / (2 * half), 2 * half))?;
    let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let (a, b) = (a.to_dtype(DType::F32)?, b.to_dtype(DType::F32)?);
    let cos = angles.cos.unsqueeze(1)?;
    let sin = (angles.sin.unsqueeze(1)? * f64::from(sign))?;
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Ok(Tensor::cat(&[first, second], D::Minus1)?.to_dtype(x.dtype())?.reshape((n, width))?)
}

fn kernel(x: &Tensor, angles: &Angles, sign: f32) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    let half = angles.cos.dim(1)?;
    let mut y = vec![0f32; n * width];
    with_f32([x, &angles.cos, &angles.sin], |[x, cos, sin]| {
        let rows = y.par_chunks_mut(width).zip(x.par_chunks(width)).zip(cos.par_chunks(half).zip(sin.par_chunks(half)));
        rows.for_each(|((y, x), (cos, sin))| {
            for (y, x) in y.chunks_mut(2 * half).zip(x.chunks(2 * half)) {
                let ((first, second), (a, b)) = (y.split_at_mut(half), x.split_at(half));
                for i in 0..half {
                    let sin = sin[i] * sign;
                    first[i] = a[i] * cos[i] - b[i] * sin;
                    second[i] = b[i] * cos[i] + a[i] * sin;
                }
            }
        });
    })?;
    Ok(Tensor::from_vec(y, (n, width), x.device())?)
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
}

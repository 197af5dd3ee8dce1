//! Inverted dropout whose mask is a function of (key, index): y = x ∘ m / (1 − p), m ~ Bernoulli(1 − p).
//!
//! Nothing is stored for the backward pass, which is the same map: the mask is drawn again from its key. That makes a
//! recomputed block (gradient checkpointing) identical to the first pass, for any number of threads.

#![allow(unsafe_code, reason = "results in memory that holds nothing yet, and GPU kernels")]

use super::fast_math::vectorised;
use super::fresh::{Unwritten, filled};
use super::gpu::{self, Arg, Launch, unwritten};
use super::{fused, output, sum, with_f32};
use anyhow::Result;
use candle_core::{DType, Tensor};
use rayon::prelude::*;

const CHUNK: usize = 1 << 14;

/// x: any shape -> y of the same shape. Its own backward.
pub fn apply(x: &Tensor, probability: f64, key: u64) -> Result<Tensor> {
    if probability == 0.0 {
        return Ok(x.clone());
    }
    if fused(&[x]) {
        let draw = Draw::of(probability);
        let y = with_f32([x], |[x]| {
            let fill = |y: &mut Unwritten| {
                let chunks = y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).enumerate();
                chunks.for_each(|(i, (y, x))| drop_into(y, x, &draw, key.wrapping_add((i * CHUNK) as u64)));
            };
            // SAFETY: x has as many values as y.
            unsafe { filled(x.len(), fill) }
        })?;
        return output(y, x.shape(), x);
    }
    if gpu::DROPOUT.serve(&[x]) {
        return on_gpu("dropout", x, None, x.dtype(), (probability, key));
    }
    generic(x, probability, key)
}

/// As [`apply`], of x in f32.
pub fn apply_widened(x: &Tensor, probability: f64, key: u64) -> Result<Tensor> {
    if x.dtype() != DType::F32 && probability > 0.0 && gpu::DROPOUT.serve(&[x]) {
        return on_gpu("dropout_widened", x, None, DType::F32, (probability, key));
    }
    apply(&x.to_dtype(DType::F32)?, probability, key)
}

/// y plus what [`apply`] makes of x, which is of the same shape, in the type of y.
pub fn add(y: &Tensor, x: &Tensor, probability: f64, key: u64) -> Result<Tensor> {
    let fits = x.dtype() == DType::F32 && x.dims() == y.dims();
    if fits && probability > 0.0 && gpu::DROPOUT.serve(&[y, x]) {
        return on_gpu("dropout_added", x, Some(y), y.dtype(), (probability, key));
    }
    sum::add(y, &apply(x, probability, key)?)
}

/// `added`, which is of the result's type, plus the dropped x.
fn on_gpu(
    entry: &str,
    x: &Tensor,
    added: Option<&Tensor>,
    dtype: DType,
    (probability, key): (f64, u64),
) -> Result<Tensor> {
    let (n, draw) = (x.elem_count(), Draw::of(probability));
    let activations = if dtype == DType::F32 { x.dtype() } else { dtype };
    // SAFETY: all of one shape; the entries are for these types. The kernel writes all of y.
    unsafe {
        let y = unwritten(x.shape(), dtype, x.device())?;
        let tensors = [Arg::In(x)].into_iter().chain(added.map(Arg::In)).chain([Arg::Out(&y)]);
        let numbers = [Arg::Large(key), Arg::Large(draw.threshold), Arg::Float(draw.keep.into()), Arg::Large(n as u64)];
        let arguments: Vec<Arg<'_>> = tensors.chain(numbers).collect();
        Launch::map(&gpu::DROPOUT, entry, activations, n).run(&arguments)?;
        Ok(y)
    }
}

/// The mask goes to the device as one bit per element, and is expanded there by a table of the eight values of each
/// byte.
fn generic(x: &Tensor, probability: f64, key: u64) -> Result<Tensor> {
    let (n, draw) = (x.elem_count(), Draw::of(probability));
    let mut bytes = vec![0u8; n.div_ceil(8)];
    bytes.par_iter_mut().enumerate().for_each(|(i, byte)| {
        let kept = |bit: u64| draw.factor(key.wrapping_add(8 * i as u64 + bit)) > 0.0;
        *byte = (0..8).map(|bit| u8::from(kept(bit)) << bit).sum();
    });
    let keep = draw.keep;
    let table = (0..256 * 8).map(|i| if (i / 8) >> (i % 8) & 1 == 1 { keep } else { 0.0 }).collect::<Vec<f32>>();
    let table = Tensor::from_vec(table, (256, 8), x.device())?.to_dtype(x.dtype())?;
    // As u32: candle's GPU kernels take the largest value of an index type for "no row", but 255 is a row here.
    let bytes = Tensor::from_vec(bytes, n.div_ceil(8), x.device())?.to_dtype(DType::U32)?;
    let mask = table.index_select(&bytes, 0)?.flatten_all()?.narrow(0, 0, n)?.reshape(x.shape())?;
    Ok((x * mask)?)
}

/// What a drawn number means.
struct Draw {
    /// 1 / (1 − p), for what is kept.
    keep: f32,
    /// Numbers of 32 bits below it drop a value.
    threshold: u64,
}

impl Draw {
    fn of(probability: f64) -> Self {
        Self { keep: (1.0 / (1.0 - probability)) as f32, threshold: (probability * (1u64 << 32) as f64) as u64 }
    }

    /// 0 or 1 / (1 − p), for an element's key.
    #[inline(always)]
    fn factor(&self, key: u64) -> f32 {
        if mix(key) >> 32 < self.threshold { 0.0 } else { self.keep }
    }
}

/// The values x dropped; `key`: of the first of them.
fn drop_into(y: &mut Unwritten, x: &[f32], draw: &Draw, key: u64) {
    vectorised!({
        for (i, (y, x)) in y.iter_mut().zip(x).enumerate() {
            y.write(draw.factor(key.wrapping_add(i as u64)) * x);
        }
    });
}

/// SplitMix64's output function: a bijection whose outputs pass for random bits.
#[inline(always)]
pub fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::random;
    use candle_core::Device;

    #[test]
    fn keeps_the_mean_and_repeats_by_key() {
        let x = Tensor::ones((200, 300), DType::F32, &Device::Cpu).unwrap();
        let draw = |key| apply(&x, 0.3, key).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (a, b, c) = (draw(1), draw(1), draw(2));
        assert_eq!(a, b);
        assert_ne!(a, c);
        let mean = a.iter().sum::<f32>() / a.len() as f32;
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
        let dropped = a.iter().filter(|v| **v == 0.0).count() as f64 / a.len() as f64;
        assert!((dropped - 0.3).abs() < 0.01, "{dropped}");
    }

    #[test]
    fn the_mask_is_the_same_on_every_device() {
        for (shape, probability) in [([3, 7], 0.5), ([40, 41], 0.05), ([1, 20_001], 0.9)] {
            let x = random(&shape, 5);
            let values = |y: Tensor| y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let (fast, slow) = (apply(&x, probability, 9).unwrap(), generic(&x, probability, 9).unwrap());
            assert_eq!(values(fast), values(slow));
        }
    }
}

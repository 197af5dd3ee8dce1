//! The CPU kernel: rows in parallel, and the weight's gradient by ranges of channels.

use crate::ops::activation::Activation;
use crate::ops::attention::Span;
use crate::ops::fast_math::vectorised;
use crate::ops::{output, with_f32};
use anyhow::Result;
use candle_core::{DType, Tensor};
use rayon::prelude::*;

/// Channels of the weight's gradient that a task sums.
const CHANNELS: usize = 128;

/// Where a row's window lies: the row's place in its sequence, and the sequence.
fn places(spans: &[Span]) -> Vec<(usize, usize)> {
    spans.iter().enumerate().flat_map(|(number, span)| (0..span.q_len).map(move |t| (number, t))).collect()
}

/// [C, K] -> K rows of C
fn columns(weight: &[f32], width: usize) -> Vec<f32> {
    let channels = weight.len() / width;
    (0..width).flat_map(|j| (0..channels).map(move |c| weight[c * width + j])).collect()
}

/// Adds w ∘ x to y.
#[inline(always)]
fn add_product(y: &mut [f32], w: &[f32], x: &[f32]) {
    for ((y, w), x) in y.iter_mut().zip(w).zip(x) {
        *y += w * x;
    }
}

/// p of every row, [N, C].
fn convolved(x: &[f32], columns: &[f32], spans: &[Span], before: &[f32], channels: usize) -> Vec<f32> {
    let (width, places) = (columns.len() / channels, places(spans));
    let kept = width - 1;
    let mut p = vec![0f32; x.len()];
    p.par_chunks_mut(channels).zip(&places).for_each(|(p, &(number, t))| {
        vectorised!({
            for (j, w) in columns.chunks(channels).enumerate() {
                let source = match (t + j).checked_sub(kept) {
                    Some(row) => Some((x, spans[number].q_start + row)),
                    None if before.is_empty() => None,
                    None => Some((before, number * kept + t + j)),
                };
                if let Some((values, row)) = source {
                    add_product(p, w, &values[row * channels..][..channels]);
                }
            }
        });
    });
    p
}

pub fn forward(x: &Tensor, weight: &Tensor, spans: &[Span], before: Option<&Tensor>) -> Result<Tensor> {
    let (channels, width) = weight.dims2()?;
    let before = before.map(|before| before.to_dtype(DType::F32)?.flatten_all()?.contiguous()).transpose()?;
    let body = |x: &[f32], w: &[f32], before: &[f32]| {
        let mut y = convolved(x, &columns(w, width), spans, before, channels);
        let silu = |row: &mut [f32]| vectorised!(row.iter_mut().for_each(|p| *p = Activation::Silu.at(*p).0));
        y.par_chunks_mut(channels).for_each(silu);
        y
    };
    let y = match &before {
        Some(before) => with_f32([x, weight, before], |[x, w, before]| body(x, w, before))?,
        None => with_f32([x, weight], |[x, w]| body(x, w, &[]))?,
    };
    output(y, x.shape(), x)
}

pub fn backward(
    x: &Tensor,
    weight: &Tensor,
    dy: &Tensor,
    spans: &[Span],
    wants_weight: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (channels, width) = weight.dims2()?;
    let (kept, places) = (width - 1, places(spans));
    let (dx, dw) = with_f32([x, weight, dy], |[x, w, dy]| {
        let columns = columns(w, width);
        let mut dp = convolved(x, &columns, spans, &[], channels);
        dp.par_chunks_mut(channels).zip(dy.par_chunks(channels)).for_each(|(dp, dy)| {
            vectorised!(dp.iter_mut().zip(dy).for_each(|(p, dy)| *p = dy * Activation::Silu.at(*p).1));
        });
        let mut dx = vec![0f32; x.len()];
        dx.par_chunks_mut(channels).zip(&places).for_each(|(dx, &(number, t))| {
            let span = spans[number];
            vectorised!({
                for (j, w) in columns.chunks(channels).enumerate().filter(|(j, _)| t + kept - j < span.q_len) {
                    add_product(dx, w, &dp[(span.q_start + t + kept - j) * channels..][..channels]);
                }
            });
        });
        (dx, wants_weight.then(|| weight_gradient(x, &dp, spans, (channels, width))))
    })?;
    let dw = dw.map(|dw| Tensor::from_vec(dw, (channels, width), x.device())).transpose()?;
    Ok((output(dx, x.shape(), x)?, dw))
}

/// dw: [C, K]; each task has all rows of some channels.
fn weight_gradient(x: &[f32], dp: &[f32], spans: &[Span], (channels, width): (usize, usize)) -> Vec<f32> {
    let (kept, mut dw) = (width - 1, vec![0f32; channels * width]);
    dw.par_chunks_mut(CHANNELS * width).enumerate().for_each(|(number, dw)| {
        let (first, count) = (number * CHANNELS, dw.len() / width);
        let part = |row: usize| row * channels + first..row * channels + first + count;
        let mut sums = vec![0f32; width * count];
        vectorised!({
            for span in spans {
                for t in 0..span.q_len {
                    let dp = &dp[part(span.q_start + t)];
                    for (j, sums) in sums.chunks_mut(count).enumerate().filter(|(j, _)| t + j >= kept) {
                        add_product(sums, dp, &x[part(span.q_start + t + j - kept)]);
                    }
                }
            }
        });
        for (j, sums) in sums.chunks(count).enumerate() {
            sums.iter().enumerate().for_each(|(c, sum)| dw[c * width + j] = *sum);
        }
    });
    dw
}

//! Depthwise causal convolution over each sequence, then silu: p_t = Σ_j w_j ∘ x_{t−K+1+j}, y = p σ(p); x, y: [N, C], w: [C, K],
//! j < K. What comes before a sequence is zero, or the K − 1 rows that an earlier call ended with.
//!
//! Backward, with dp = dy silu'(p): dx_t = Σ_j w_j ∘ dp_{t+K−1−j} within the sequence; dw_j = Σ_t dp_t ∘ x_{t−K+1+j}. In f32,
//! rounded once.

mod kernel;
mod on_gpu;

use super::activation::Activation;
use super::attention::{Layout, Span};
use super::fused;
use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};

/// What the backward pass needs.
pub struct Saved {
    x: Tensor,
}

/// x: [N, C], weight: [C, K], f32 -> y: [N, C]; `before`: [spans · (K − 1), C], the rows before each sequence, zeros if there are
/// none.
pub fn forward(x: &Tensor, weight: &Tensor, layout: &Layout, before: Option<&Tensor>) -> Result<(Tensor, Saved)> {
    check(x, weight, &layout.spans, before)?;
    let saved = Saved { x: x.clone() };
    if fused(&[x, weight]) {
        return Ok((kernel::forward(x, weight, &layout.spans, before)?, saved));
    }
    if before.is_none() && on_gpu::serves(&[x], weight) {
        return Ok((on_gpu::forward(x, weight, layout)?, saved));
    }
    let p = Rows::new(x, weight, layout, before)?.convolved(weight)?;
    Ok((Activation::Silu.forward(&p)?.to_dtype(x.dtype())?, saved))
}

/// dy: [N, C] -> (dx: [N, C], dw: [C, K] in f32 if it is wanted), of whole sequences
pub fn backward(
    saved: &Saved,
    weight: &Tensor,
    dy: &Tensor,
    layout: &Layout,
    wants_weight: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let x = &saved.x;
    check(x, weight, &layout.spans, None)?;
    ensure!(dy.dims() == x.dims(), "dy of {:?} for an input of {:?}", dy.dims(), x.dims());
    if fused(&[x, weight, dy]) {
        return kernel::backward(x, weight, dy, &layout.spans, wants_weight);
    }
    if on_gpu::serves(&[x, dy], weight) {
        return on_gpu::backward(x, weight, dy, layout, wants_weight);
    }
    let rows = Rows::new(x, weight, layout, None)?;
    let (_, slope) = Activation::Silu.with_slope(&rows.convolved(weight)?)?;
    let dp = (dy.to_dtype(DType::F32)? * slope)?;
    let columns = || (0..rows.tables.len()).map(|j| (rows.shifted(j)? * &dp)?.sum(0));
    let dw = wants_weight.then(|| columns().collect::<candle_core::Result<Vec<_>>>()).transpose()?;
    let later = Rows { values: with_zeros(&dp)?, tables: tables(layout, weight.dim(1)?, (false, true), x.device())? };
    let dw = dw.map(|dw| Tensor::stack(&dw, 1)).transpose()?;
    Ok((later.convolved(weight)?.to_dtype(x.dtype())?, dw))
}

/// The last K − 1 rows of each sequence, those before it included: [spans · (K − 1), C], for the next call's `before`.
pub fn ends(x: &Tensor, width: usize, spans: &[Span], before: Option<&Tensor>) -> Result<Tensor> {
    let rows = extended(x, before)?;
    let (kept, offset) = (width - 1, before.map_or(0, |before| before.dims()[0]));
    let zero = (rows.dim(0)? - 1) as u32;
    let mut places = Vec::with_capacity(spans.len() * kept);
    for (number, span) in spans.iter().enumerate() {
        let place = |back: usize| match span.q_len.checked_sub(back) {
            Some(row) => (offset + span.q_start + row) as u32,
            None if before.is_some() => (number * kept + kept + span.q_len - back) as u32,
            None => zero,
        };
        places.extend((1..=kept).rev().map(place));
    }
    Ok(rows.index_select(&Tensor::new(places, x.device())?, 0)?)
}

fn check(x: &Tensor, weight: &Tensor, spans: &[Span], before: Option<&Tensor>) -> Result<()> {
    let ((n, channels), (rows, width)) = (x.dims2()?, weight.dims2()?);
    ensure!(rows == channels && width > 0, "weight {:?} does not fit {:?}", weight.dims(), x.dims());
    let mut next = 0;
    for span in spans {
        ensure!(span.q_start == next, "{span:?} does not begin at row {next}");
        next += span.q_len;
    }
    ensure!(next == n, "the spans are of {next} rows, there are {n}");
    let expected = [spans.len() * (width - 1), channels];
    ensure!(before.is_none_or(|before| before.dims() == expected), "rows before the sequences are not {expected:?}");
    Ok(())
}

/// The body for any device: rows by number, one table for each place of the window.
struct Rows {
    /// [rows before the sequences, N, 1 of zeros; C], f32
    values: Tensor,
    /// K of [N]
    tables: Vec<Tensor>,
}

impl Rows {
    fn new(x: &Tensor, weight: &Tensor, layout: &Layout, before: Option<&Tensor>) -> Result<Self> {
        let values = extended(&x.to_dtype(DType::F32)?, before)?;
        Ok(Self { values, tables: tables(layout, weight.dim(1)?, (before.is_some(), false), x.device())? })
    }

    /// The rows that place `j` of the window sees, [N, C].
    fn shifted(&self, j: usize) -> candle_core::Result<Tensor> {
        self.values.index_select(&self.tables[j], 0)
    }

    /// Σ_j w_j ∘ shifted_j
    fn convolved(&self, weight: &Tensor) -> Result<Tensor> {
        let columns = weight.t()?.contiguous()?;
        let terms = (0..self.tables.len()).map(|j| Ok(self.shifted(j)?.broadcast_mul(&columns.get(j)?)?));
        let terms: Vec<Tensor> = terms.collect::<Result<_>>()?;
        let sum = terms.iter().skip(1).try_fold(terms[0].clone(), |sum, term| sum + term)?;
        Ok(sum)
    }
}

/// [rows before the sequences; x; a row of zeros]
fn extended(x: &Tensor, before: Option<&Tensor>) -> Result<Tensor> {
    let Some(before) = before else { return with_zeros(x) };
    with_zeros(&Tensor::cat(&[&before.to_dtype(x.dtype())?, x], 0)?)
}

fn with_zeros(x: &Tensor) -> Result<Tensor> {
    Ok(x.pad_with_zeros(0, 0, 1)?)
}

/// Which of the extended rows each place j of the window sees, K of [N]: for the forward pass (t − K + 1 + j) or for the gradients
/// of whole sequences (t + K − 1 − j). Made once for all layers.
fn tables(layout: &Layout, width: usize, (with_before, later): (bool, bool), device: &Device) -> Result<Vec<Tensor>> {
    let kept = width - 1;
    let of_place = |j: usize| {
        layout.kept(format!("causal convolution: {j} of {width}, {with_before}, {later}"), |spans| {
            let offset = if with_before { spans.len() * kept } else { 0 };
            let zero = offset + spans.iter().map(|span| span.q_len).sum::<usize>();
            let row = |(number, span, t): (usize, &Span, usize)| {
                if later {
                    let row = t + kept - j;
                    return if row < span.q_len { span.q_start + row } else { zero };
                }
                match (t + j).checked_sub(kept) {
                    Some(row) => offset + span.q_start + row,
                    None if with_before => number * kept + t + j,
                    None => zero,
                }
            };
            let numbered = spans.iter().enumerate();
            let rows = numbered.flat_map(|(number, span)| (0..span.q_len).map(move |t| row((number, span, t)) as u32));
            Ok(Tensor::new(rows.collect::<Vec<u32>>(), device)?)
        })
    };
    (0..width).map(of_place).collect()
}

#[cfg(test)]
mod tests;

//! Causal grouped-query attention: o = softmax(cap(scale · q kᵀ) + mask) v, head by head and sequence by sequence.
//!
//! q, o: [Nq, Hq · D], k, v: [Nk, Hkv · D]; query head h reads key head h / (Hq / Hkv). The rows of all sequences
//! follow one another without padding; a [`Span`] says which rows belong to a sequence, and nothing is seen across
//! spans. Query i of a span sees keys 0 ..= i + Tk − Tq (Tq < Tk when keys are cached), only the last `window` of them
//! in a layer with a sliding window. cap is Gemma 2's soft-cap of the scores, or the identity.
//!
//! Backward, with P the probabilities: dV = Pᵀ dO; dP = dO Vᵀ; dS = P ∘ (dP − rowsum(dO ∘ O)), times the cap's slope;
//! dQ = scale · dS K; dK = scale · dSᵀ Q. The kernel keeps only each row's log-sum-exp and rebuilds P tile by tile
//! (after FlashAttention, arXiv 2205.14135), so it never holds more than a tile of the Tq × Tk matrix.

mod generic;
mod kernel;

pub use generic::MAX_SCORES;

use super::fused;
use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use generic::{Group, Kept};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, OnceLock, PoisonError};

/// Heads and scores of one layer's attention.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Hq
    pub heads: usize,
    /// Hkv
    pub kv_heads: usize,
    /// D
    pub head_dim: usize,
    /// Usually D^(-1/2).
    pub scale: f64,
    /// How many keys a query sees at most, itself included.
    pub window: Option<usize>,
    /// Soft-cap of the scores.
    pub cap: Option<f64>,
}

/// One sequence of a batch: its rows of q, and the rows of k and v that its last query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub q_start: usize,
    /// Tq
    pub q_len: usize,
    pub k_start: usize,
    /// Tk, at least Tq
    pub k_len: usize,
}

type MaskKey = ((usize, usize), Option<usize>);

/// The sequences of a batch, in the order of their rows.
pub struct Layout {
    pub spans: Vec<Span>,
    /// For the generic body; shared by all layers.
    groups: OnceLock<Vec<Group>>,
    /// The generic body's masks by (Tq, Tk) and window, shared by layers and groups.
    masks: Mutex<HashMap<MaskKey, Tensor>>,
}

impl Layout {
    /// Sequences of these lengths, each with all its own keys.
    pub fn new(lengths: &[usize]) -> Self {
        let mut start = 0;
        let spans = lengths.iter().map(|&length| {
            let span = Span { q_start: start, q_len: length, k_start: start, k_len: length };
            start += length;
            span
        });
        Self::cached(spans.collect())
    }

    /// Sequences of which some keys may have been computed earlier.
    pub fn cached(spans: Vec<Span>) -> Self {
        Self { spans, groups: OnceLock::new(), masks: Mutex::default() }
    }

    /// Checks that q, k and v match `shape` and the spans, which the kernel trusts to say where to read and write.
    fn check(&self, q: &Tensor, k: &Tensor, v: &Tensor, shape: Shape) -> Result<()> {
        let Shape { heads, kv_heads, head_dim, .. } = shape;
        let (queries, keys) = (q.dims2()?.0, k.dims2()?.0);
        let fit = kv_heads > 0 && head_dim > 0 && heads.is_multiple_of(kv_heads);
        let is_of =
            |x: &Tensor, rows, heads: usize| heads.checked_mul(head_dim).is_some_and(|width| x.dims() == [rows, width]);
        let fit = fit && is_of(q, queries, heads) && [k, v].iter().all(|x| is_of(x, keys, kv_heads));
        let (dims, shapes) = ([q.dims(), k.dims(), v.dims()], (heads, kv_heads, head_dim));
        ensure!(fit, "q, k and v of {dims:?} are not of {shapes:?}: heads, key heads and values of a head");
        ensure!(shape.window != Some(0), "a window of no keys");
        let mut row = 0;
        for span in &self.spans {
            let end = span.k_start.checked_add(span.k_len);
            let fits = span.q_start == row && span.q_len <= span.k_len && end.is_some_and(|end| end <= keys);
            ensure!(fits, "{span:?} is not a part of {queries} queries, the next of which is {row}, and {keys} keys");
            row += span.q_len;
        }
        ensure!(row == queries, "the spans are of {row} queries, there are {queries}");
        Ok(())
    }

    /// Checks that no two spans share keys: the kernel sums a key's gradient within one span only.
    fn check_apart(&self) -> Result<()> {
        let ends = self.spans.iter().map(|span| span.k_start + span.k_len);
        let apart = self.spans.iter().skip(1).zip(ends).all(|(next, end)| next.k_start >= end);
        ensure!(apart, "spans that share keys have no backward pass");
        Ok(())
    }

    /// [Tq, Tk] of 0 where a query sees a key and −∞ where it does not, f32.
    fn mask(&self, lengths: (usize, usize), window: Option<usize>, device: &Device) -> Result<Tensor> {
        let mut masks = self.masks.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match masks.entry((lengths, window)) {
            Entry::Occupied(mask) => mask.get().clone(),
            Entry::Vacant(place) => place.insert(generic::mask(lengths, window, device)?).clone(),
        })
    }

    /// The spans as groups for the generic body; the first call fixes the number of heads and the device.
    fn groups(&self, heads: usize, device: &Device) -> Result<&[Group]> {
        if let Some(groups) = self.groups.get() {
            return Ok(groups);
        }
        let groups = Group::all(&self.spans, heads, generic::MAX_SCORES, device)?;
        Ok(self.groups.get_or_init(|| groups))
    }
}

/// What the backward pass needs.
pub struct Saved {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    softmax: Softmax,
}

/// What is kept of the softmax.
enum Softmax {
    /// Log-sum-exp of every row, span by span, then head by head, f32.
    LogSumExp(Vec<f32>),
    /// What the generic body keeps of each group.
    Groups(Vec<Kept>),
}

/// q: [Nq, Hq · D], k, v: [Nk, Hkv · D] -> o: [Nq, Hq · D]
pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor, shape: Shape, layout: &Layout) -> Result<(Tensor, Saved)> {
    layout.check(q, k, v, shape)?;
    let (output, softmax) = if fused(&[q, k, v]) {
        let (output, lse) = kernel::forward(q, k, v, shape, layout)?;
        (output, Softmax::LogSumExp(lse))
    } else {
        let (output, groups) = generic::forward(q, k, v, shape, layout)?;
        (output, Softmax::Groups(groups))
    };
    Ok((output.clone(), Saved { q: q.clone(), k: k.clone(), v: v.clone(), output, softmax }))
}

/// dy: [Nq, Hq · D] -> (dq, dk, dv) in the shapes of q, k, v
pub fn backward(saved: &Saved, dy: &Tensor, shape: Shape, layout: &Layout) -> Result<(Tensor, Tensor, Tensor)> {
    let Saved { q, k, v, .. } = saved;
    layout.check(q, k, v, shape)?;
    layout.check_apart()?;
    ensure!(dy.dims() == q.dims(), "dy of {:?} for an output of {:?}", dy.dims(), q.dims());
    match &saved.softmax {
        Softmax::LogSumExp(lse) => kernel::backward(saved, lse, &dy.contiguous()?, shape, layout),
        Softmax::Groups(groups) => generic::backward(saved, groups, dy, shape, layout),
    }
}

#[cfg(test)]
mod tests;

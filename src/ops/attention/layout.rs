//! The sequences of a batch, and what the bodies for GPUs derive from them once for all layers.

use super::groups::{self, Group};
use super::shape::{Shape, Span};
use super::tiles::{self, Side};
use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, OnceLock, PoisonError};

type MaskKey = ((usize, usize), Option<usize>);

/// The sequences of a batch, in the order of their rows.
pub struct Layout {
    pub spans: Vec<Span>,
    /// Scores that the generic body holds at a time.
    pub(super) max_scores: usize,
    /// For the generic body; shared by all layers.
    groups: OnceLock<Vec<Group>>,
    /// The generic body's masks by (Tq, Tk) and window, shared by layers and groups.
    masks: Mutex<HashMap<MaskKey, Tensor>>,
    /// What else is made of the spans once for all layers, by what it is.
    kept: Mutex<HashMap<String, Tensor>>,
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
        let max_scores = groups::MAX_SCORES;
        Self { spans, max_scores, groups: OnceLock::new(), masks: Mutex::default(), kept: Mutex::default() }
    }

    /// Checks that q, k and v match `shape` and the spans, which the kernel trusts to say where to read and write.
    pub(super) fn check(&self, q: &Tensor, k: &Tensor, v: &Tensor, shape: Shape) -> Result<()> {
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
    pub(super) fn check_apart(&self) -> Result<()> {
        let ends = self.spans.iter().map(|span| span.k_start + span.k_len);
        let apart = self.spans.iter().skip(1).zip(ends).all(|(next, end)| next.k_start >= end);
        ensure!(apart, "spans that share keys have no backward pass");
        Ok(())
    }

    /// [Tq, Tk] of 0 where a query sees a key and −∞ where it does not, f32.
    pub(super) fn mask(&self, lengths: (usize, usize), window: Option<usize>, device: &Device) -> Result<Tensor> {
        let mut masks = self.masks.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match masks.entry((lengths, window)) {
            Entry::Occupied(mask) => mask.get().clone(),
            Entry::Vacant(place) => place.insert(groups::mask(lengths, window, device)?).clone(),
        })
    }

    /// What `make` makes of the spans, by a name of its own: on the device of all layers, and but once for them.
    pub(in crate::ops) fn kept(
        &self,
        what: impl Into<String>,
        make: impl FnOnce(&[Span]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match kept.entry(what.into()) {
            Entry::Occupied(found) => found.get().clone(),
            Entry::Vacant(place) => place.insert(make(&self.spans)?).clone(),
        })
    }

    /// The spans as tiles of at most `rows` queries or keys: [tiles · 6], u32.
    pub(super) fn tiles(&self, side: Side, rows: usize, device: &Device) -> Result<Tensor> {
        self.kept(format!("attention: tiles of {rows} {side:?}"), |spans| {
            Ok(Tensor::new(tiles::table(spans, side, rows)?, device)?)
        })
    }

    /// The spans as groups for the generic body; the first call fixes the number of heads and the device.
    pub(super) fn groups(&self, heads: usize, device: &Device) -> Result<&[Group]> {
        if let Some(groups) = self.groups.get() {
            return Ok(groups);
        }
        let groups = Group::all(&self.spans, heads, self.max_scores, device)?;
        Ok(self.groups.get_or_init(|| groups))
    }
}

//! Keys and values of the positions already decoded, for several sequences at once: each has a slot of rows.

use super::ModelSpec;
use crate::ops::attention::Span;
use anyhow::{Context, Result};
use candle_core::Tensor;

/// One layer's keys and values, [slots · capacity, Hkv · D] each.
pub struct LayerCache {
    /// slots · capacity
    rows: usize,
    /// Allocated with the first rows, whose width and type it takes.
    kept: Option<(Tensor, Tensor)>,
}

/// The cache of every layer, and how many positions of each slot are filled.
pub struct KvCache {
    pub layers: Vec<LayerCache>,
    lengths: Vec<usize>,
    capacity: usize,
}

impl KvCache {
    /// Room for `capacity` positions of each of `slots` sequences, so that appending does not copy earlier rows.
    pub fn new(spec: &ModelSpec, slots: usize, capacity: usize) -> Self {
        let layers = (0..spec.num_hidden_layers).map(|_| LayerCache { rows: slots * capacity, kept: None });
        let layers = layers.collect();
        Self { layers, lengths: vec![0; slots], capacity }
    }

    /// Forgets a slot's sequence.
    pub fn clear(&mut self, slot: usize) {
        if let Some(length) = self.lengths.get_mut(slot) {
            *length = 0;
        }
    }

    /// Makes room for fresh rows, given as (slot, how many) in the order of the rows; returns their attention spans.
    ///
    /// # Errors
    /// A slot that does not exist or has no room left.
    pub fn extend(&mut self, fresh: &[(usize, usize)]) -> Result<Vec<Span>> {
        let mut row = 0;
        let mut span = |&(slot, count): &(usize, usize)| {
            let length = self.lengths.get_mut(slot).context("no such slot of the cache")?;
            anyhow::ensure!(*length + count <= self.capacity, "the cache holds {} positions a sequence", self.capacity);
            *length += count;
            let span = Span { q_start: row, q_len: count, k_start: slot * self.capacity, k_len: *length };
            row += count;
            Ok(span)
        };
        fresh.iter().map(&mut span).collect()
    }
}

impl LayerCache {
    /// Writes the fresh rows of k and v, [N, Hkv · D], to where `spans` has them; returns the rows of all slots.
    pub fn append(&mut self, k: &Tensor, v: &Tensor, spans: &[Span]) -> Result<(Tensor, Tensor)> {
        let (keys, values) = match self.kept.take() {
            Some(kept) => kept,
            None => {
                let empty = || Tensor::zeros((self.rows, k.dim(1)?), k.dtype(), k.device());
                (empty()?, empty()?)
            }
        };
        for span in spans {
            let place = span.k_start + span.k_len - span.q_len;
            for (all, fresh) in [(&keys, k), (&values, v)] {
                all.slice_set(&fresh.narrow(0, span.q_start, span.q_len)?.contiguous()?, 0, place)?;
            }
        }
        // What follows the last sequence need not be read (or widened).
        let used = spans.iter().map(|span| span.k_start + span.k_len).max().unwrap_or(0);
        let seen = (keys.narrow(0, 0, used)?, values.narrow(0, 0, used)?);
        self.kept = Some((keys, values));
        Ok(seen)
    }
}

//! What is kept of the positions already decoded, for several sequences at once: each has a slot. Attention keeps keys and values,
//! in rows of the slot; a gated DeltaNet the last rows before its convolution, and its state.

use super::ModelSpec;
use crate::ops::attention::Span;
use anyhow::{Context, Result};
use candle_core::Tensor;

/// What one layer keeps.
pub struct LayerCache {
    slots: usize,
    capacity: usize,
    /// Keys and values, [slots · capacity, Hkv · D] each. Allocated with the first rows, whose width and type they take.
    kept: Option<(Tensor, Tensor)>,
    /// A gated DeltaNet's rows [slots + 1, rows, width] and states [slots + 1, values]: the last are zeros, from which sequences
    /// start. Allocated with the first.
    recurrent: Option<(Tensor, Tensor)>,
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
        let layer = |_| LayerCache { slots, capacity, kept: None, recurrent: None };
        Self { layers: (0..spec.num_hidden_layers).map(layer).collect(), lengths: vec![0; slots], capacity }
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
                let empty = || Tensor::zeros((self.slots * self.capacity, k.dim(1)?), k.dtype(), k.device());
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

    /// What [`LayerCache::remember`] got of the sequences of `spans`, zeros for those that begin; `None` if all do.
    pub fn recall(&self, spans: &[Span]) -> Result<Option<(Tensor, Tensor)>> {
        let begins = |span: &Span| span.k_len == span.q_len;
        let Some((rows, states)) = self.recurrent.as_ref().filter(|_| !spans.iter().all(begins)) else {
            return Ok(None);
        };
        let places = spans.iter().map(|span| if begins(span) { self.slots } else { self.slot(span) } as u32);
        let places = Tensor::new(places.collect::<Vec<u32>>(), states.device())?;
        Ok(Some((rows.index_select(&places, 0)?.flatten(0, 1)?, states.index_select(&places, 0)?)))
    }

    /// Keeps the last rows before the convolution, [spans · rows, width], and the states, [spans, values], of the sequences.
    pub fn remember(&mut self, spans: &[Span], rows: &Tensor, states: &Tensor) -> Result<()> {
        let rows = rows.reshape((spans.len(), (), rows.dim(1)?))?;
        let (all_rows, all_states) = match self.recurrent.take() {
            Some(kept) => kept,
            None => {
                let empty = |x: &Tensor| {
                    let shape = [&[self.slots + 1], &x.dims()[1..]].concat();
                    Tensor::zeros(shape, x.dtype(), x.device())
                };
                (empty(&rows)?, empty(states)?)
            }
        };
        for (number, span) in spans.iter().enumerate() {
            for (all, fresh) in [(&all_rows, &rows), (&all_states, states)] {
                all.slice_set(&fresh.narrow(0, number, 1)?.contiguous()?, 0, self.slot(span))?;
            }
        }
        self.recurrent = Some((all_rows, all_states));
        Ok(())
    }

    fn slot(&self, span: &Span) -> usize {
        span.k_start / self.capacity.max(1)
    }
}

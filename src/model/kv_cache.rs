//! Keys and values of the positions already decoded, for generation (one sequence at a time).

use super::ModelSpec;
use anyhow::Result;
use candle_core::Tensor;
use candle_nn::kv_cache::KvCache as CandleCache;

/// One layer's keys and values, [T, Hkv · D] each.
pub struct LayerCache(CandleCache);

impl LayerCache {
    /// Appends rows of k and v; returns all rows so far.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok(self.0.append(k, v)?)
    }
}

/// The cache of every layer, and the position at which the next token stands.
pub struct KvCache {
    pub layers: Vec<LayerCache>,
    pub position: usize,
}

impl KvCache {
    /// Room for `capacity` positions, kept from the start so that appending does not copy.
    pub fn new(spec: &ModelSpec, capacity: usize) -> Self {
        let layers = (0..spec.num_hidden_layers).map(|_| LayerCache(CandleCache::new(0, capacity))).collect();
        Self { layers, position: 0 }
    }
}

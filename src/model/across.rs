//! What the layers of a pass hand to one another besides the hidden states: keys and values that later layers see too, each layer's
//! own input, and the gradients of both on their way back.

use crate::ops::sum::add;
use anyhow::{Context, Result};
use candle_core::Tensor;
use std::collections::BTreeMap;

/// Empty for models whose layers hand on nothing else.
#[derive(Default)]
pub struct Across {
    /// Keys and values by the layer that they are of, [Nk, Hkv · D] each, as attention sees them.
    keys: BTreeMap<usize, (Tensor, Tensor)>,
    /// The sums of their gradients from the layers that are later.
    key_gradients: BTreeMap<usize, (Tensor, Tensor)>,
    /// For each layer, [N, size].
    pub inputs: Vec<Tensor>,
    /// Of `inputs` by layer, where they are needed.
    pub input_gradients: BTreeMap<usize, Tensor>,
}

impl Across {
    pub fn share(&mut self, layer: usize, keys: (Tensor, Tensor)) {
        self.keys.insert(layer, keys);
    }

    /// What was shared as that of `layer`.
    pub fn shared(&self, layer: usize) -> Result<(Tensor, Tensor)> {
        self.keys.get(&layer).cloned().with_context(|| format!("layer {layer} has shared no keys"))
    }

    /// Adds gradients of what `layer` has shared.
    pub fn give_back(&mut self, layer: usize, (dk, dv): (Tensor, Tensor)) -> Result<()> {
        let sum = self.with_gradients(layer, (dk, dv))?;
        self.key_gradients.insert(layer, sum);
        Ok(())
    }

    /// dk and dv of `layer` with what later layers gave back, which is taken.
    pub fn with_gradients(&mut self, layer: usize, (dk, dv): (Tensor, Tensor)) -> Result<(Tensor, Tensor)> {
        Ok(match self.key_gradients.remove(&layer) {
            Some((keys, values)) => (add(&keys, &dk)?, add(&values, &dv)?),
            None => (dk, dv),
        })
    }

    pub fn input(&self, layer: usize) -> Result<&Tensor> {
        self.inputs.get(layer).with_context(|| format!("layer {layer} has no input of its own"))
    }
}

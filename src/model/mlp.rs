//! Gated MLP of a block: down(act(gate(h)) ∘ up(h)).

use super::Pass;
use super::linear::{Linear, Saved as LinearSaved};
use super::parameters::Gradients;
use super::projection::{Projection, Saved as ProjectionSaved};
use crate::ops::activation::Activation;
use crate::ops::gated_mlp;
use anyhow::Result;
use candle_core::Tensor;

#[derive(Clone)]
pub struct Mlp {
    /// gate and up.
    pub gate_up: Projection<2>,
    pub down_proj: Linear,
    pub activation: Activation,
}

/// What the backward pass needs; `gate` and `up` are [N, intermediate_size].
pub struct Saved {
    gate: Tensor,
    up: Tensor,
    gate_up: ProjectionSaved<2>,
    down: LinearSaved,
}

impl Mlp {
    /// h: [N, hidden_size] -> [N, hidden_size]
    pub fn forward(&self, h: &Tensor, pass: &Pass) -> Result<(Tensor, Saved)> {
        let ([gate, up], inner, gate_up) = self.inner(h, pass)?;
        let (y, down) = self.down_proj.forward(&inner, pass.dropout_key)?;
        Ok((y, Saved { gate, up, gate_up, down }))
    }

    /// What [`Mlp::forward`] saves, without its last product.
    pub fn saved(&self, h: &Tensor, pass: &Pass) -> Result<Saved> {
        let ([gate, up], inner, gate_up) = self.inner(h, pass)?;
        Ok(Saved { gate, up, gate_up, down: self.down_proj.saved(&inner, pass.dropout_key)? })
    }

    /// h -> ([gate, up], act(gate) ∘ up), all [N, intermediate_size]
    fn inner(&self, h: &Tensor, pass: &Pass) -> Result<([Tensor; 2], Tensor, ProjectionSaved<2>)> {
        let ([gate, up], saved) = self.gate_up.forward(h, pass.dropout_key)?;
        let inner = gated_mlp::forward(&gate, &up, self.activation)?;
        Ok(([gate, up], inner, saved))
    }

    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.gate_up.linears().iter().chain([&self.down_proj])
    }

    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.gate_up.linears_mut().iter_mut().chain([&mut self.down_proj])
    }

    /// dy -> dh, both [N, hidden_size]
    pub fn backward(&self, saved: &Saved, dy: &Tensor, pass: &Pass, gradients: &mut Gradients) -> Result<Tensor> {
        let key = pass.dropout_key;
        let d_inner = self.down_proj.backward(&saved.down, dy, key, gradients)?;
        let (d_gate, d_up) = gated_mlp::backward(&saved.gate, &saved.up, &d_inner, self.activation)?;
        self.gate_up.backward(&saved.gate_up, &[d_gate, d_up], key, gradients)
    }
}

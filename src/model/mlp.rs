//! Gated MLP of a block: down(act(gate(h)) ∘ up(h)).

use super::Pass;
use super::linear::{Linear, Saved as LinearSaved};
use super::parameters::Gradients;
use crate::ops::activation::Activation;
use crate::ops::gated_mlp;
use crate::ops::sum::add;
use anyhow::Result;
use candle_core::Tensor;

pub struct Mlp {
    pub gate_proj: Linear,
    pub up_proj: Linear,
    pub down_proj: Linear,
    pub activation: Activation,
}

/// What the backward pass needs; `gate` and `up` are [N, intermediate_size].
pub struct Saved {
    gate: Tensor,
    up: Tensor,
    gate_saved: LinearSaved,
    up_saved: LinearSaved,
    down_saved: LinearSaved,
}

impl Mlp {
    /// h: [N, hidden_size] -> [N, hidden_size]
    pub fn forward(&self, h: &Tensor, pass: &Pass) -> Result<(Tensor, Saved)> {
        let [(gate, gate_saved), (up, up_saved)] =
            Linear::forward_each([&self.gate_proj, &self.up_proj], h, pass.dropout_key)?;
        let inner = gated_mlp::forward(&gate, &up, self.activation)?;
        let (y, down_saved) = self.down_proj.forward(&inner, pass.dropout_key)?;
        Ok((y, Saved { gate, up, gate_saved, up_saved, down_saved }))
    }

    /// dy -> dh, both [N, hidden_size]
    pub fn backward(&self, saved: &Saved, dy: &Tensor, pass: &Pass, gradients: &mut Gradients) -> Result<Tensor> {
        let key = pass.dropout_key;
        let d_inner = self.down_proj.backward(&saved.down_saved, dy, key, gradients)?;
        let (d_gate, d_up) = gated_mlp::backward(&saved.gate, &saved.up, &d_inner, self.activation)?;
        let dh = self.up_proj.backward(&saved.up_saved, &d_up, key, gradients)?;
        add(&dh, &self.gate_proj.backward(&saved.gate_saved, &d_gate, key, gradients)?)
    }
}

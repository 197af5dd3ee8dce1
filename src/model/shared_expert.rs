//! The expert of a mixture that every row goes to: σ(h gᵀ) expert(h), with g: [1, hidden_size].
//!
//! Backward, with s = σ(h gᵀ) and y = expert(h): dy' = s dy for the expert, and s (1 − s) ⟨dy, y⟩ for the gate.

use super::Pass;
use super::linear::{Linear, Saved as LinearSaved};
use super::mlp::{Mlp, Saved as MlpSaved};
use super::parameters::Gradients;
use crate::ops::cast;
use crate::ops::sum::add;
use anyhow::Result;
use candle_core::{D, DType, Tensor};

#[derive(Clone)]
pub struct SharedExpert {
    pub expert: Mlp,
    /// g
    pub gate: Linear,
}

/// What the backward pass needs.
pub struct Saved {
    expert: MlpSaved,
    gate: LinearSaved,
    /// s: [N, 1], f32
    share: Tensor,
    /// [N, hidden_size]
    y: Tensor,
}

impl SharedExpert {
    /// h: [N, hidden_size] -> [N, hidden_size]
    pub fn forward(&self, h: &Tensor, pass: &Pass) -> Result<(Tensor, Saved)> {
        let (y, expert) = self.expert.forward(h, pass)?;
        let (score, gate) = self.gate.forward(h, pass.dropout_key)?;
        let share = candle_nn::ops::sigmoid(&cast(&score, DType::F32)?)?;
        let weighed = y.broadcast_mul(&cast(&share, y.dtype())?)?;
        Ok((weighed, Saved { expert, gate, share, y }))
    }

    /// dy -> dh, both [N, hidden_size]
    pub fn backward(&self, saved: &Saved, dy: &Tensor, pass: &Pass, gradients: &mut Gradients) -> Result<Tensor> {
        let (share, key) = (&saved.share, pass.dropout_key);
        let product = (cast(dy, DType::F32)? * cast(&saved.y, DType::F32)?)?.sum_keepdim(D::Minus1)?;
        let d_score = cast(&((product * share)? * (1.0 - share)?)?, dy.dtype())?;
        let d_expert = dy.broadcast_mul(&cast(share, dy.dtype())?)?;
        let dh = self.gate.backward(&saved.gate, &d_score, key, gradients)?;
        add(&self.expert.backward(&saved.expert, &d_expert, pass, gradients)?, &dh)
    }

    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.expert.linears().chain([&self.gate])
    }

    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.expert.linears_mut().chain([&mut self.gate])
    }
}

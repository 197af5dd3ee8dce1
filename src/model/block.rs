//! One decoder block: x₁ = x + attention(norm(x)); y = x₁ + mlp(norm(x₁)). Gemma also norms the outputs of attention
//! and MLP before each sum. The backward is the same, bottom to top.

use super::attention::{Attention, Saved as AttentionSaved};
use super::linear::Linear;
use super::mlp::{Mlp, Saved as MlpSaved};
use super::norm::Norm;
use super::parameters::Gradients;
use super::{LayerCache, Pass};
use crate::ops::rms_norm;
use crate::ops::sum::add;
use anyhow::Result;
use candle_core::Tensor;

pub struct Block {
    pub attention_norm: Norm,
    pub self_attn: Attention,
    pub attention_post_norm: Option<Norm>,
    pub mlp_norm: Norm,
    pub mlp: Mlp,
    pub mlp_post_norm: Option<Norm>,
}

/// What the backward pass needs.
pub struct Saved {
    attention_norm: rms_norm::Saved,
    attention: AttentionSaved,
    attention_post_norm: Option<rms_norm::Saved>,
    mlp_norm: rms_norm::Saved,
    mlp: MlpSaved,
    mlp_post_norm: Option<rms_norm::Saved>,
}

impl Block {
    /// x: [N, hidden_size] -> y: [N, hidden_size]
    pub fn forward(&self, x: &Tensor, pass: &Pass, cache: Option<&mut LayerCache>) -> Result<(Tensor, Saved)> {
        let (h, attention_norm) = self.attention_norm.forward(x)?;
        let (a, attention) = self.self_attn.forward(&h, pass, cache)?;
        let (a, attention_post_norm) = forward_post(self.attention_post_norm.as_ref(), a)?;
        let (x, h, mlp_norm) = self.mlp_norm.forward_sum(x, &a)?;
        let (m, mlp) = self.mlp.forward(&h, pass)?;
        let (m, mlp_post_norm) = forward_post(self.mlp_post_norm.as_ref(), m)?;
        let saved = Saved { attention_norm, attention, attention_post_norm, mlp_norm, mlp, mlp_post_norm };
        Ok((add(&x, &m)?, saved))
    }

    /// dy -> dx, both [N, hidden_size]
    pub fn backward(&self, saved: &Saved, dy: &Tensor, pass: &Pass, gradients: &mut Gradients) -> Result<Tensor> {
        let dm = backward_post(self.mlp_post_norm.as_ref(), saved.mlp_post_norm.as_ref(), dy, gradients)?;
        let dh = self.mlp.backward(&saved.mlp, &dm, pass, gradients)?;
        let dx = self.mlp_norm.backward_sum(&saved.mlp_norm, &dh, dy, gradients)?;
        let da = backward_post(self.attention_post_norm.as_ref(), saved.attention_post_norm.as_ref(), &dx, gradients)?;
        let dh = self.self_attn.backward(&saved.attention, &da, pass, gradients)?;
        self.attention_norm.backward_sum(&saved.attention_norm, &dh, &dx, gradients)
    }

    /// The block's linears, in the order of [`crate::names::BLOCK_LINEARS`].
    pub fn linears(&self) -> [&Linear; 7] {
        let (attention, mlp) = (&self.self_attn, &self.mlp);
        [
            &attention.q_proj,
            &attention.k_proj,
            &attention.v_proj,
            &attention.o_proj,
            &mlp.gate_proj,
            &mlp.up_proj,
            &mlp.down_proj,
        ]
    }

    /// As [`Block::linears`], to attach adapters.
    pub fn linears_mut(&mut self) -> [&mut Linear; 7] {
        let (attention, mlp) = (&mut self.self_attn, &mut self.mlp);
        [
            &mut attention.q_proj,
            &mut attention.k_proj,
            &mut attention.v_proj,
            &mut attention.o_proj,
            &mut mlp.gate_proj,
            &mut mlp.up_proj,
            &mut mlp.down_proj,
        ]
    }
}

fn forward_post(norm: Option<&Norm>, x: Tensor) -> Result<(Tensor, Option<rms_norm::Saved>)> {
    let Some(norm) = norm else { return Ok((x, None)) };
    let (y, saved) = norm.forward(&x)?;
    Ok((y, Some(saved)))
}

fn backward_post(
    norm: Option<&Norm>,
    saved: Option<&rms_norm::Saved>,
    dy: &Tensor,
    gradients: &mut Gradients,
) -> Result<Tensor> {
    match (norm, saved) {
        (Some(norm), Some(saved)) => norm.backward(saved, dy, gradients),
        _ => Ok(dy.clone()),
    }
}

//! One decoder block: x₁ = x + attention(norm(x)); y = x₁ + mlp(norm(x₁)). Its backward is that, bottom to top.

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
    pub input_layernorm: Norm,
    pub self_attn: Attention,
    pub post_attention_layernorm: Norm,
    pub mlp: Mlp,
}

/// What the backward pass needs.
pub struct Saved {
    norm1: rms_norm::Saved,
    attention: AttentionSaved,
    norm2: rms_norm::Saved,
    mlp: MlpSaved,
}

impl Block {
    /// x: [B · T, hidden_size] -> y: [B · T, hidden_size]
    pub fn forward(&self, x: &Tensor, pass: &Pass, cache: Option<&mut LayerCache>) -> Result<(Tensor, Saved)> {
        let (h, norm1) = self.input_layernorm.forward(x)?;
        let (a, attention) = self.self_attn.forward(&h, pass, cache)?;
        let x = add(x, &a)?;
        let (h, norm2) = self.post_attention_layernorm.forward(&x)?;
        let (m, mlp) = self.mlp.forward(&h, pass)?;
        Ok((add(&x, &m)?, Saved { norm1, attention, norm2, mlp }))
    }

    /// dy -> dx, both [B · T, hidden_size]
    pub fn backward(&self, saved: &Saved, dy: &Tensor, pass: &Pass, gradients: &mut Gradients) -> Result<Tensor> {
        let dh = self.mlp.backward(&saved.mlp, dy, pass, gradients)?;
        let dx = add(dy, &self.post_attention_layernorm.backward(&saved.norm2, &dh, gradients)?)?;
        let dh = self.self_attn.backward(&saved.attention, &dx, pass, gradients)?;
        add(&dx, &self.input_layernorm.backward(&saved.norm1, &dh, gradients)?)
    }

    /// The block's linears, in the order of [`super::BLOCK_LINEARS`].
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

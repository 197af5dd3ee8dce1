//! An RMSNorm of the model under its Hugging Face module path.

use super::parameters::Gradients;
use crate::ops::rms_norm;
use anyhow::Result;
use candle_core::{DType, Tensor};

#[derive(Clone)]
pub struct Norm {
    pub module: String,
    /// [d]: hidden_size or, for the norms of queries and keys, head_dim or the width of all heads; f32
    pub weight: Tensor,
    pub eps: f64,
    /// Whether the weight in use is 1 + `weight` (Gemma).
    pub offset: bool,
    /// Whether `weight` gets a gradient.
    pub trains: bool,
}

/// x -> (y, what [`backward_if`] needs) by one of the forward functions of a norm that a layer may have; x itself if it has none.
pub fn forward_if(
    norm: Option<&Norm>,
    x: Tensor,
    forward: fn(&Norm, &Tensor) -> Result<(Tensor, rms_norm::Saved)>,
) -> Result<(Tensor, Option<rms_norm::Saved>)> {
    let Some(norm) = norm else { return Ok((x, None)) };
    let (y, saved) = forward(norm, &x)?;
    Ok((y, Some(saved)))
}

/// dy -> dx by the backward function that belongs to it.
pub fn backward_if(
    norm: Option<(&Norm, &rms_norm::Saved)>,
    dy: Tensor,
    backward: fn(&Norm, &rms_norm::Saved, &Tensor, &mut Gradients) -> Result<Tensor>,
    gradients: &mut Gradients,
) -> Result<Tensor> {
    norm.map_or(Ok(dy.clone()), |(norm, saved)| backward(norm, saved, &dy, gradients))
}

impl Norm {
    /// x: [N, d] -> y: [N, d]
    pub fn forward(&self, x: &Tensor) -> Result<(Tensor, rms_norm::Saved)> {
        rms_norm::forward(x, &self.scale()?, self.eps)
    }

    /// dy -> dx, both [N, d]
    pub fn backward(&self, saved: &rms_norm::Saved, dy: &Tensor, gradients: &mut Gradients) -> Result<Tensor> {
        self.train(saved, dy, gradients)?;
        rms_norm::backward_input(saved, &self.scale()?, dy)
    }

    /// Adds the weight's gradient to `gradients`, if it gets one.
    fn train(&self, saved: &rms_norm::Saved, dy: &Tensor, gradients: &mut Gradients) -> Result<()> {
        if self.trains {
            // The offset does not change the weight's gradient.
            gradients.add(&format!("{}.weight", self.module), rms_norm::backward_weight(saved, dy)?)?;
        }
        Ok(())
    }

    /// The norm of a sum. x, added: [N, d] -> (x + added, y): [N, d] each
    pub fn forward_sum(&self, x: &Tensor, added: &Tensor) -> Result<(Tensor, Tensor, rms_norm::Saved)> {
        rms_norm::forward_sum(x, added, &self.scale()?, self.eps)
    }

    /// As [`Norm::backward`], plus `added`, which has the shape of dx.
    pub fn backward_sum(
        &self,
        saved: &rms_norm::Saved,
        dy: &Tensor,
        added: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        self.train(saved, dy, gradients)?;
        rms_norm::backward_input_sum(saved, &self.scale()?, dy, added)
    }

    /// As [`Norm::forward`] over each head, or over all if d is their width: x: [N, H · d] -> y: [N, H · d]
    pub fn forward_heads(&self, x: &Tensor) -> Result<(Tensor, rms_norm::Saved)> {
        let (y, saved) = self.forward(&self.split(x)?)?;
        Ok((y.reshape(x.shape())?, saved))
    }

    /// As [`Norm::backward`] over each head.
    pub fn backward_heads(&self, saved: &rms_norm::Saved, dy: &Tensor, gradients: &mut Gradients) -> Result<Tensor> {
        Ok(self.backward(saved, &self.split(dy)?, gradients)?.reshape(dy.shape())?)
    }

    /// [N, H · d] -> [N · H, d]
    fn split(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.reshape(((), self.weight.dim(0)?))?)
    }

    fn scale(&self) -> Result<Tensor> {
        let weight = self.weight.to_dtype(DType::F32)?;
        Ok(if self.offset { (weight + 1.0)? } else { weight })
    }
}

//! An RMSNorm of the model under its Hugging Face module path.

use super::parameters::Gradients;
use crate::ops::rms_norm;
use anyhow::Result;
use candle_core::Tensor;

pub struct Norm {
    pub module: String,
    /// [hidden_size]
    pub weight: Tensor,
    pub eps: f64,
    /// Whether `weight` gets a gradient.
    pub trains: bool,
}

impl Norm {
    /// x: [N, hidden_size] -> y: [N, hidden_size]
    pub fn forward(&self, x: &Tensor) -> Result<(Tensor, rms_norm::Saved)> {
        rms_norm::forward(x, &self.weight, self.eps)
    }

    /// dy -> dx, both [N, hidden_size]
    pub fn backward(&self, saved: &rms_norm::Saved, dy: &Tensor, gradients: &mut Gradients) -> Result<Tensor> {
        if self.trains {
            gradients.add(&format!("{}.weight", self.module), rms_norm::backward_weight(saved, dy)?)?;
        }
        rms_norm::backward_input(saved, &self.weight, dy)
    }
}

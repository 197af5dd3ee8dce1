//! What lets the positions of a sequence see one another: attention or a gated DeltaNet.

use super::attention::{Attention, Saved as AttentionSaved};
use super::delta_net::{DeltaNet, Saved as DeltaNetSaved};
use super::linear::Linear;
use super::parameters::Gradients;
use super::{Across, LayerCache, Pass};
use anyhow::Result;
use candle_core::Tensor;

#[derive(Clone)]
pub enum Mixer {
    Attention(Box<Attention>),
    DeltaNet(Box<DeltaNet>),
}

/// What the backward pass needs.
pub enum Saved {
    Attention(AttentionSaved),
    DeltaNet(DeltaNetSaved),
}

impl Mixer {
    /// h: [N, hidden_size] -> [N, hidden_size]. With a cache, the positions of earlier calls are also seen.
    pub fn forward(
        &self,
        h: &Tensor,
        pass: &Pass,
        cache: Option<&mut LayerCache>,
        across: &mut Across,
    ) -> Result<(Tensor, Saved)> {
        Ok(match self {
            Self::Attention(attention) => {
                let (y, saved) = attention.forward(h, pass, cache, across)?;
                (y, Saved::Attention(saved))
            }
            Self::DeltaNet(delta_net) => {
                let (y, saved) = delta_net.forward(h, pass, cache)?;
                (y, Saved::DeltaNet(saved))
            }
        })
    }

    /// dy -> dh, both [N, hidden_size]
    pub fn backward(
        &self,
        saved: &Saved,
        dy: &Tensor,
        pass: &Pass,
        across: &mut Across,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        match (self, saved) {
            (Self::Attention(attention), Saved::Attention(saved)) => {
                attention.backward(saved, dy, pass, across, gradients)
            }
            (Self::DeltaNet(delta_net), Saved::DeltaNet(saved)) => delta_net.backward(saved, dy, pass, gradients),
            _ => anyhow::bail!("a block was saved with another mixer"),
        }
    }

    pub fn linears(&self) -> Vec<&Linear> {
        match self {
            Self::Attention(attention) => attention.linears().collect(),
            Self::DeltaNet(delta_net) => delta_net.linears().collect(),
        }
    }

    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Self::Attention(attention) => attention.linears_mut().collect(),
            Self::DeltaNet(delta_net) => delta_net.linears_mut().collect(),
        }
    }
}

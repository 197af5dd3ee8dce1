//! Queries, keys and values of attention, from a linear each, from one linear for all, or the values from the keys' linear.

use super::DropoutKey;
use super::linear::Linear;
use super::parameters::Gradients;
use super::projection::{Projection, Saved as ProjectionSaved};
use crate::ops::sum::add;
use anyhow::Result;
use candle_core::Tensor;

#[derive(Clone)]
pub enum Qkv {
    Each(Projection<3>),
    /// Queries, and keys that are values too.
    ValuesAreKeys(Projection<2>),
}

/// What the backward pass needs.
pub enum Saved {
    Each(ProjectionSaved<3>),
    ValuesAreKeys(ProjectionSaved<2>),
}

impl Qkv {
    /// h: [N, hidden_size] -> q: [N, Hq · D], k, v: [N, Hkv · D]
    pub fn forward(&self, h: &Tensor, key: Option<DropoutKey>) -> Result<([Tensor; 3], Saved)> {
        Ok(match self {
            Self::Each(projection) => {
                let (outputs, saved) = projection.forward(h, key)?;
                (outputs, Saved::Each(saved))
            }
            Self::ValuesAreKeys(projection) => {
                let ([q, k], saved) = projection.forward(h, key)?;
                ([q, k.clone(), k], Saved::ValuesAreKeys(saved))
            }
        })
    }

    /// dq, dk, dv -> dh: [N, hidden_size]
    pub fn backward(
        &self,
        saved: &Saved,
        [dq, dk, dv]: [Tensor; 3],
        key: Option<DropoutKey>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        match (self, saved) {
            (Self::Each(projection), Saved::Each(saved)) => projection.backward(saved, &[dq, dk, dv], key, gradients),
            (Self::ValuesAreKeys(projection), Saved::ValuesAreKeys(saved)) => {
                projection.backward(saved, &[dq, add(&dk, &dv)?], key, gradients)
            }
            _ => anyhow::bail!("attention was saved with other projections"),
        }
    }

    pub fn linears(&self) -> &[Linear] {
        match self {
            Self::Each(projection) => projection.linears(),
            Self::ValuesAreKeys(projection) => projection.linears(),
        }
    }

    pub fn linears_mut(&mut self) -> &mut [Linear] {
        match self {
            Self::Each(projection) => projection.linears_mut(),
            Self::ValuesAreKeys(projection) => projection.linears_mut(),
        }
    }
}

//! Queries, keys and values of attention: from a linear each, from one linear for all, the values from the keys' linear, or queries
//! alone where keys and values are another layer's.

use super::DropoutKey;
use super::linear::{Linear, Saved as LinearSaved};
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
    Queries(Linear),
}

/// What the backward pass needs.
pub enum Saved {
    Each(ProjectionSaved<3>),
    ValuesAreKeys(ProjectionSaved<2>),
    Queries(LinearSaved),
}

/// What a layer's own linears give, or its gradients: q: [N, Hq · D], and k and v: [N, Hkv · D], if they are its own.
pub type Outputs = (Tensor, Option<(Tensor, Tensor)>);

impl Qkv {
    /// h: [N, hidden_size]
    pub fn forward(&self, h: &Tensor, key: Option<DropoutKey>) -> Result<(Outputs, Saved)> {
        Ok(match self {
            Self::Each(projection) => {
                let ([q, k, v], saved) = projection.forward(h, key)?;
                ((q, Some((k, v))), Saved::Each(saved))
            }
            Self::ValuesAreKeys(projection) => {
                let ([q, k], saved) = projection.forward(h, key)?;
                ((q, Some((k.clone(), k))), Saved::ValuesAreKeys(saved))
            }
            Self::Queries(linear) => {
                let (q, saved) = linear.forward(h, key)?;
                ((q, None), Saved::Queries(saved))
            }
        })
    }

    /// -> dh: [N, hidden_size]
    pub fn backward(
        &self,
        saved: &Saved,
        (dq, own): Outputs,
        key: Option<DropoutKey>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        match (self, saved, own) {
            (Self::Each(projection), Saved::Each(saved), Some((dk, dv))) => {
                projection.backward(saved, &[dq, dk, dv], key, gradients)
            }
            (Self::ValuesAreKeys(projection), Saved::ValuesAreKeys(saved), Some((dk, dv))) => {
                projection.backward(saved, &[dq, add(&dk, &dv)?], key, gradients)
            }
            (Self::Queries(linear), Saved::Queries(saved), None) => linear.backward(saved, &dq, key, gradients),
            _ => anyhow::bail!("attention was saved with other projections"),
        }
    }

    pub fn linears(&self) -> &[Linear] {
        match self {
            Self::Each(projection) => projection.linears(),
            Self::ValuesAreKeys(projection) => projection.linears(),
            Self::Queries(linear) => std::slice::from_ref(linear),
        }
    }

    pub fn linears_mut(&mut self) -> &mut [Linear] {
        match self {
            Self::Each(projection) => projection.linears_mut(),
            Self::ValuesAreKeys(projection) => projection.linears_mut(),
            Self::Queries(linear) => std::slice::from_mut(linear),
        }
    }
}

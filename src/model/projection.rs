//! Several outputs of one input: q, k and v, or gate and up, each from a linear of its own or all as parts of one.

use super::DropoutKey;
use super::linear::{Linear, Saved as LinearSaved};
use super::parameters::Gradients;
use crate::ops::traffic::counted;
use anyhow::Result;
use candle_core::Tensor;

/// Linears with N outputs in all.
#[derive(Clone)]
pub enum Projection<const N: usize> {
    Separate([Linear; N]),
    /// One linear whose outputs are `widths` columns each, one after another.
    Fused {
        linear: Linear,
        widths: [usize; N],
    },
}

/// What the backward pass needs.
pub enum Saved<const N: usize> {
    Separate([LinearSaved; N]),
    Fused(LinearSaved),
}

impl<const N: usize> Projection<N> {
    /// x: [n, d_in] -> N outputs, [n, d_out] each
    pub fn forward(&self, x: &Tensor, key: Option<DropoutKey>) -> Result<([Tensor; N], Saved<N>)> {
        match self {
            Self::Separate(linears) => {
                let (mut outputs, mut saved) = (Vec::with_capacity(N), Vec::with_capacity(N));
                for (output, one) in Linear::forward_each(linears.each_ref(), x, key)? {
                    outputs.push(output);
                    saved.push(one);
                }
                Ok((all(outputs)?, Saved::Separate(all(saved)?)))
            }
            Self::Fused { linear, widths } => {
                let (y, saved) = linear.forward(x, key)?;
                let mut start = 0;
                let parts = widths.iter().map(|&width| {
                    let part = y.narrow(1, start, width)?;
                    start += width;
                    Ok(counted(part.contiguous()?, &[&part]))
                });
                Ok((all(parts.collect::<Result<_>>()?)?, Saved::Fused(saved)))
            }
        }
    }

    /// The outputs' gradients, [n, d_out] each -> dx: [n, d_in]
    pub fn backward(
        &self,
        saved: &Saved<N>,
        dy: &[Tensor; N],
        key: Option<DropoutKey>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        match (self, saved) {
            (Self::Separate(linears), Saved::Separate(saved)) => {
                // The last first: bottom to top, as everywhere.
                let each = linears.iter().zip(saved).zip(dy).rev();
                let each: Vec<_> = each.map(|((linear, saved), dy)| (linear, saved, dy)).collect();
                Linear::backward_each(&each, key, gradients)
            }
            (Self::Fused { linear, .. }, Saved::Fused(saved)) => {
                let dy = counted(Tensor::cat(dy, 1)?, &dy.each_ref());
                linear.backward(saved, &dy, key, gradients)
            }
            _ => anyhow::bail!("a projection was saved in another form"),
        }
    }

    pub fn linears(&self) -> &[Linear] {
        match self {
            Self::Separate(linears) => linears,
            Self::Fused { linear, .. } => std::slice::from_ref(linear),
        }
    }

    pub fn linears_mut(&mut self) -> &mut [Linear] {
        match self {
            Self::Separate(linears) => linears,
            Self::Fused { linear, .. } => std::slice::from_mut(linear),
        }
    }
}

fn all<T, const N: usize>(parts: Vec<T>) -> Result<[T; N]> {
    parts.try_into().map_err(|_| anyhow::anyhow!("a projection has another number of outputs than {N}"))
}

//! The body for any device: full score matrices, in candle's operations.
//!
//! Each operation is a kernel launch on a GPU, so sequences are computed together as far as their
//! scores fit (groups.rs). Products have the type of their operands: in half precision scores and their gradients are
//! rounded to it before the softmax and its slope, which are f32.

use super::layout::Layout;
use super::saved::{Kept, Saved};
use super::shape::Shape;
use crate::ops::softcap;
use anyhow::Result;
use candle_core::{D, DType, Tensor};

pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor, shape: Shape, layout: &Layout) -> Result<(Tensor, Vec<Kept>)> {
    let (mut outputs, mut kept) = (vec![], vec![]);
    for group in layout.groups(shape.heads, q.device())? {
        let (tq, tk) = group.lengths;
        let (q, k, v) = (group.queries(q, shape)?, group.keys(k, shape)?, group.keys(v, shape)?);
        let scores = (q.matmul(&k.t()?)?.to_dtype(DType::F32)? * shape.scale)?;
        let capped = shape.cap.map(|cap| softcap::forward(&scores, cap)).transpose()?;
        let scores = capped.as_ref().unwrap_or(&scores).reshape(((), tq, tk))?;
        let masked = scores.broadcast_add(&layout.mask(group.lengths, shape.window, q.device())?)?;
        let probabilities = candle_nn::ops::softmax_last_dim(&masked)?.to_dtype(v.dtype())?;
        let probabilities = probabilities.reshape((q.dim(0)?, (), tk))?;
        outputs.push(group.merge_heads(&probabilities.matmul(&v)?, tq)?);
        kept.push((probabilities, capped));
    }
    Ok((join(outputs)?, kept))
}

pub fn backward(
    saved: &Saved,
    kept: &[Kept],
    dy: &Tensor,
    shape: Shape,
    layout: &Layout,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (mut dqs, mut keys) = (vec![], KeyGradients::default());
    let groups = layout.groups(shape.heads, dy.device())?;
    for (i, (group, (p, capped))) in groups.iter().zip(kept).enumerate() {
        let (q, output) = (group.queries(&saved.q, shape)?, group.queries(&saved.output, shape)?);
        let dy = group.gradients(dy, shape)?;
        let (k, v) = (group.keys(&saved.k, shape)?, group.keys(&saved.v, shape)?);
        let dv = group.merge_heads(&p.t()?.matmul(&dy)?, group.lengths.1)?;
        let dp = dy.matmul(&v.t()?)?.to_dtype(DType::F32)?;
        let inner = (dy.to_dtype(DType::F32)? * output.to_dtype(DType::F32)?)?.sum_keepdim(D::Minus1)?;
        let ds = (p.to_dtype(DType::F32)? * dp.broadcast_sub(&inner)?)?;
        let ds = match (capped, shape.cap) {
            (Some(capped), Some(cap)) => softcap::backward(capped, &ds, cap)?,
            _ => ds,
        };
        let ds = (ds * shape.scale)?.to_dtype(q.dtype())?;
        dqs.push(group.merge_heads(&ds.matmul(&k)?, group.lengths.0)?);
        let dk = group.merge_heads(&ds.t()?.matmul(&q)?, group.lengths.1)?;
        let last = i.checked_sub(1).and_then(|last| groups.get(last));
        keys.add(last.is_some_and(|last| group.continues(last)), dk, dv)?;
    }
    let (dk, dv) = keys.joined(saved.k.dtype())?;
    Ok((join(dqs)?, dk, dv))
}

/// The gradients of each sequence's keys and values. Those of a sequence in several groups are summed in f32.
#[derive(Default)]
struct KeyGradients {
    dk: Vec<Tensor>,
    dv: Vec<Tensor>,
}

impl KeyGradients {
    /// `continues`: these are further gradients of the last sequence, of its keys so far and more.
    fn add(&mut self, continues: bool, dk: Tensor, dv: Tensor) -> Result<()> {
        for (sums, part) in [(&mut self.dk, dk), (&mut self.dv, dv)] {
            let last = if continues { sums.pop() } else { None };
            sums.push(match last {
                Some(last) => {
                    let more = part.dim(0)? - last.dim(0)?;
                    (part.to_dtype(DType::F32)? + last.to_dtype(DType::F32)?.pad_with_zeros(0, 0, more)?)?
                }
                None => part,
            });
        }
        Ok(())
    }

    fn joined(self, dtype: DType) -> Result<(Tensor, Tensor)> {
        let narrow = |parts: Vec<Tensor>| -> Result<Tensor> {
            join(parts.iter().map(|part| part.to_dtype(dtype)).collect::<candle_core::Result<_>>()?)
        };
        Ok((narrow(self.dk)?, narrow(self.dv)?))
    }
}

/// Rows of all groups, one after another.
fn join(mut parts: Vec<Tensor>) -> Result<Tensor> {
    Ok(if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 0)? })
}

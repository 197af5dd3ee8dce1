//! The body for any device: each span's full matrices of scores, in candle's operations.

use super::{Layout, Saved, Shape, Span};
use crate::ops::softcap;
use anyhow::Result;
use candle_core::{D, DType, Tensor};

/// Probabilities and capped scores of a span.
type Kept = (Tensor, Option<Tensor>);

pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor, shape: Shape, layout: &Layout) -> Result<(Tensor, Vec<Kept>)> {
    let (mut outputs, mut kept) = (vec![], vec![]);
    for &span in &layout.spans {
        let (q, k, v) = (queries(q, span, shape)?, keys(k, span, shape)?, keys(v, span, shape)?);
        let scores = (q.matmul(&k.t()?)?.to_dtype(DType::F32)? * shape.scale)?;
        let capped = shape.cap.map(|cap| softcap::forward(&scores, cap)).transpose()?;
        let scores = capped.as_ref().unwrap_or(&scores);
        let masked = scores.reshape(((), span.q_len, span.k_len))?;
        let masked = masked.broadcast_add(&layout.mask(span, shape.window, q.device())?)?;
        let probabilities = candle_nn::ops::softmax_last_dim(&masked)?.to_dtype(v.dtype())?;
        let probabilities = probabilities.reshape((shape.kv_heads, (), span.k_len))?;
        outputs.push(from_heads(&probabilities.matmul(&v)?, span.q_len)?);
        kept.push((probabilities, capped));
    }
    Ok((Tensor::cat(&outputs, 0)?, kept))
}

pub fn backward(
    saved: &Saved,
    kept: &[Kept],
    dy: &Tensor,
    shape: Shape,
    layout: &Layout,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (mut dqs, mut dks, mut dvs) = (vec![], vec![], vec![]);
    for (&span, (p, capped)) in layout.spans.iter().zip(kept) {
        let [q, dy, output] = [&saved.q, dy, &saved.output].map(|x| queries(x, span, shape));
        let (q, dy, output) = (q?, dy?, output?);
        let (k, v) = (keys(&saved.k, span, shape)?, keys(&saved.v, span, shape)?);
        dvs.push(from_heads(&p.t()?.matmul(&dy)?, span.k_len)?);
        let dp = dy.matmul(&v.t()?)?.to_dtype(DType::F32)?;
        let inner = (dy.to_dtype(DType::F32)? * output.to_dtype(DType::F32)?)?.sum_keepdim(D::Minus1)?;
        let ds = (p.to_dtype(DType::F32)? * dp.broadcast_sub(&inner)?)?;
        let ds = match (capped, shape.cap) {
            (Some(capped), Some(cap)) => softcap::backward(capped, &ds, cap)?,
            _ => ds,
        };
        let ds = (ds * shape.scale)?.to_dtype(q.dtype())?;
        dqs.push(from_heads(&ds.matmul(&k)?, span.q_len)?);
        dks.push(from_heads(&ds.t()?.matmul(&q)?, span.k_len)?);
    }
    Ok((Tensor::cat(&dqs, 0)?, Tensor::cat(&dks, 0)?, Tensor::cat(&dvs, 0)?))
}

fn queries(x: &Tensor, span: Span, shape: Shape) -> Result<Tensor> {
    to_heads(&x.narrow(0, span.q_start, span.q_len)?, shape)
}

fn keys(x: &Tensor, span: Span, shape: Shape) -> Result<Tensor> {
    to_heads(&x.narrow(0, span.k_start, span.k_len)?, shape)
}

/// [T, H · D] -> [Hkv, (H / Hkv) · T, D]: the query heads that share a key head stacked below one another.
fn to_heads(x: &Tensor, shape: Shape) -> Result<Tensor> {
    let x = x.reshape((x.dim(0)?, (), shape.head_dim))?.transpose(0, 1)?.contiguous()?;
    Ok(x.reshape((shape.kv_heads, (), shape.head_dim))?)
}

/// The inverse of [`to_heads`].
fn from_heads(x: &Tensor, t: usize) -> Result<Tensor> {
    let x = x.reshape(((), t, x.dim(D::Minus1)?))?.transpose(0, 1)?.contiguous()?;
    Ok(x.reshape((t, ()))?)
}

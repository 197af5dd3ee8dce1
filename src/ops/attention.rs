//! Causal grouped-query attention: o = softmax(scale · q kᵀ + causal mask) v, head by head.
//!
//! q, o: [B · Tq, Hq · D], k, v: [B · Tk, Hkv · D]; query head h reads key head h / (Hq / Hkv). Query i of a sequence
//! sees keys 0 ..= i + Tk − Tq (Tq < Tk when keys are cached). Padding on the right needs no mask: nothing that counts
//! comes after it.
//!
//! Backward, with P the probabilities: dV = Pᵀ dO; dP = dO Vᵀ; dS = P ∘ (dP − rowsum(dO ∘ O)); dQ = scale · dS K;
//! dK = scale · dSᵀ Q. The kernel keeps only each row's log-sum-exp and rebuilds P tile by tile (after
//! FlashAttention, arXiv 2205.14135), so it never holds more than a tile of the Tq × Tk matrix.

mod kernel;

use super::fused;
use anyhow::Result;
use candle_core::{D, DType, Tensor};

/// Sizes and scale of one attention call.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// B: sequences in the batch, all of one padded length.
    pub batch: usize,
    /// Hq
    pub heads: usize,
    /// Hkv
    pub kv_heads: usize,
    /// D
    pub head_dim: usize,
    /// Usually D^(-1/2).
    pub scale: f64,
}

/// What the backward pass needs.
pub struct Saved {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    /// Log-sum-exp per row [B, Hq, Tq] (kernel) or probabilities [B · Hkv, G · Tq, Tk] (generic).
    softmax: Tensor,
    fused: bool,
}

/// q: [B · Tq, Hq · D], k, v: [B · Tk, Hkv · D] -> o: [B · Tq, Hq · D]
pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor, shape: Shape) -> Result<(Tensor, Saved)> {
    let fused = fused(&[q, k, v]);
    let (output, softmax) = if fused { kernel::forward(q, k, v, shape)? } else { generic_forward(q, k, v, shape)? };
    let saved = Saved { q: q.clone(), k: k.clone(), v: v.clone(), output: output.clone(), softmax, fused };
    Ok((output, saved))
}

/// dy: [B · T, Hq · D] -> (dq, dk, dv) in the shapes of q, k, v
pub fn backward(saved: &Saved, dy: &Tensor, shape: Shape) -> Result<(Tensor, Tensor, Tensor)> {
    if saved.fused { kernel::backward(saved, &dy.contiguous()?, shape) } else { generic_backward(saved, dy, shape) }
}

/// [B · T, H · D] -> [B · Hkv, (H / Hkv) · T, D]: the query heads that share a key head stacked below one another.
fn to_heads(x: &Tensor, shape: Shape) -> Result<Tensor> {
    let t = x.dim(0)? / shape.batch;
    let x = x.reshape((shape.batch, t, (), shape.head_dim))?.transpose(1, 2)?.contiguous()?;
    Ok(x.reshape((shape.batch * shape.kv_heads, (), shape.head_dim))?)
}

/// The inverse of [`to_heads`].
fn from_heads(x: &Tensor, t: usize, shape: Shape) -> Result<Tensor> {
    let x = x.reshape((shape.batch, (), t, shape.head_dim))?.transpose(1, 2)?.contiguous()?;
    Ok(x.reshape((shape.batch * t, ()))?)
}

/// [Tq, Tk] of 0 where a query sees a key and −∞ where it does not, f32.
fn causal_mask(tq: usize, tk: usize, like: &Tensor) -> Result<Tensor> {
    let offset = tk - tq;
    let values: Vec<f32> =
        (0..tq).flat_map(|i| (0..tk).map(move |j| if j <= i + offset { 0.0 } else { f32::NEG_INFINITY })).collect();
    Ok(Tensor::from_vec(values, (tq, tk), like.device())?)
}

fn generic_forward(q: &Tensor, k: &Tensor, v: &Tensor, shape: Shape) -> Result<(Tensor, Tensor)> {
    let (tq, tk) = (q.dim(0)? / shape.batch, k.dim(0)? / shape.batch);
    let (q, k, v) = (to_heads(q, shape)?, to_heads(k, shape)?, to_heads(v, shape)?);
    let scores = (q.matmul(&k.t()?)?.to_dtype(DType::F32)? * shape.scale)?;
    let scores = scores.reshape(((), tq, tk))?.broadcast_add(&causal_mask(tq, tk, &q)?)?;
    let probabilities = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?;
    let probabilities = probabilities.reshape((shape.batch * shape.kv_heads, (), tk))?;
    let output = from_heads(&probabilities.matmul(&v)?, tq, shape)?;
    Ok((output, probabilities))
}

fn generic_backward(saved: &Saved, dy: &Tensor, shape: Shape) -> Result<(Tensor, Tensor, Tensor)> {
    let (tq, tk) = (saved.q.dim(0)? / shape.batch, saved.k.dim(0)? / shape.batch);
    let [q, k, v, dy, output] = [&saved.q, &saved.k, &saved.v, dy, &saved.output].map(|x| to_heads(x, shape));
    let (q, k, v, dy, output) = (q?, k?, v?, dy?, output?);
    let p = &saved.softmax;
    let dv = p.t()?.matmul(&dy)?;
    let dp = dy.matmul(&v.t()?)?.to_dtype(DType::F32)?;
    let inner = (dy.to_dtype(DType::F32)? * output.to_dtype(DType::F32)?)?.sum_keepdim(D::Minus1)?;
    let ds = (p.to_dtype(DType::F32)? * dp.broadcast_sub(&inner)?)?;
    let ds = (ds * shape.scale)?.to_dtype(q.dtype())?;
    let (dq, dk) = (ds.matmul(&k)?, ds.t()?.matmul(&q)?);
    Ok((from_heads(&dq, tq, shape)?, from_heads(&dk, tk, shape)?, from_heads(&dv, tk, shape)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Case, close, random};
    use candle_core::Var;

    const SHAPE: Shape = Shape { batch: 2, heads: 4, kv_heads: 2, head_dim: 6, scale: 0.4 };

    fn inputs(tq: usize, tk: usize, shape: Shape) -> (Tensor, Tensor, Tensor, Tensor) {
        let (queries, keys) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let (rows_q, rows_k) = (shape.batch * tq, shape.batch * tk);
        let large = |t: Tensor| (t * 3.0).unwrap();
        (
            large(random(&[rows_q, queries], 1)),
            large(random(&[rows_k, keys], 2)),
            random(&[rows_k, keys], 3),
            random(&[rows_q, queries], 4),
        )
    }

    /// The textbook form: every head's own full matrix of scores.
    fn naive(v: &[Tensor], tq: usize, tk: usize, shape: Shape) -> candle_core::Result<Tensor> {
        let group = shape.heads / shape.kv_heads;
        let offset = tk - tq;
        let mask: Vec<f64> = (0..tq * tk).map(|i| if i % tk <= i / tk + offset { 0.0 } else { -1e30 }).collect();
        let mask = Tensor::from_vec(mask, (tq, tk), v[0].device())?.to_dtype(v[0].dtype())?;
        let mut rows = vec![];
        for b in 0..shape.batch {
            let mut heads = vec![];
            for h in 0..shape.heads {
                let part = |x: &Tensor, t: usize, h: usize| {
                    x.narrow(0, b * t, t)?.narrow(1, h * shape.head_dim, shape.head_dim)
                };
                let (q, k, v) = (part(&v[0], tq, h)?, part(&v[1], tk, h / group)?, part(&v[2], tk, h / group)?);
                let scores = ((q.contiguous()?.matmul(&k.t()?.contiguous()?)? * shape.scale)? + &mask)?;
                heads.push(candle_nn::ops::softmax(&scores, 1)?.matmul(&v.contiguous()?)?);
            }
            rows.push(Tensor::cat(&heads, 1)?);
        }
        Tensor::cat(&rows, 0)
    }

    #[test]
    fn matches_autograd_and_finite_differences() {
        let t = 5;
        let (q, k, v, dy) = inputs(t, t, SHAPE);
        let (y, saved) = forward(&q, &k, &v, SHAPE).unwrap();
        let (dq, dk, dv) = backward(&saved, &dy, SHAPE).unwrap();
        let vars = [&q, &k, &v].map(|x| Var::from_tensor(x).unwrap());
        let tensors: Vec<Tensor> = vars.iter().map(|x| x.as_tensor().clone()).collect();
        let oracle = naive(&tensors, t, t, SHAPE).unwrap();
        close(&y, &oracle, 1e-6);
        let grads = (oracle * &dy).unwrap().sum_all().unwrap().backward().unwrap();
        for (var, got) in vars.iter().zip([&dq, &dk, &dv]) {
            close(got, grads.get(var).unwrap(), 1e-5);
        }
        let case = Case::new(vec![q, k, v], dy, move |v| naive(v, t, t, SHAPE));
        case.check(&[&dq, &dk, &dv], 2e-5);
    }

    #[test]
    fn kernel_equals_generic_over_several_tiles() {
        for (tq, tk) in [(150, 150), (64, 64), (1, 77), (3, 70)] {
            let (q, k, v, dy) = inputs(tq, tk, SHAPE);
            let (slow, p) = generic_forward(&q, &k, &v, SHAPE).unwrap();
            let (fast, lse) = kernel::forward(&q, &k, &v, SHAPE).unwrap();
            close(&fast, &slow, 2e-6);
            let saved = |softmax, fused| {
                let (q, k, v) = (q.clone(), k.clone(), v.clone());
                Saved { q, k, v, output: slow.clone(), softmax, fused }
            };
            let slow = generic_backward(&saved(p, false), &dy, SHAPE).unwrap();
            let fast = kernel::backward(&saved(lse, true), &dy, SHAPE).unwrap();
            close(&fast.0, &slow.0, 5e-6);
            close(&fast.1, &slow.1, 5e-6);
            close(&fast.2, &slow.2, 5e-6);
        }
    }
}

//! Causal grouped-query attention: o = softmax(cap(scale · q kᵀ) + mask) v, head by head and sequence by sequence.
//!
//! q, o: [Nq, Hq · D], k, v: [Nk, Hkv · D]; query head h reads key head h / (Hq / Hkv). The rows of all sequences
//! follow one another without padding; a [`Span`] says which rows belong to a sequence, and nothing is seen across
//! spans. Query i of a span sees keys 0 ..= i + Tk − Tq (Tq < Tk when keys are cached), only the last `window` of them
//! in a layer with a sliding window. cap is Gemma 2's soft-cap of the scores, or the identity.
//!
//! Backward, with P the probabilities: dV = Pᵀ dO; dP = dO Vᵀ; dS = P ∘ (dP − rowsum(dO ∘ O)), times the cap's slope;
//! dQ = scale · dS K; dK = scale · dSᵀ Q. The kernels, for CPUs and for GPUs, keep only each row's log-sum-exp and rebuild P
//! tile by tile (after FlashAttention, arXiv 2205.14135), so they never hold more than a tile of the Tq × Tk matrix.

mod generic;
mod groups;
mod kernel;
mod layout;
mod on_gpu;
mod saved;
mod shape;
mod tiles;

pub use groups::MAX_SCORES;
pub use layout::Layout;
pub use on_gpu::MAX_HEAD_DIM;
pub use saved::Saved;
pub use shape::{Shape, Span};

use super::fused;
use anyhow::{Result, ensure};
use candle_core::Tensor;
use saved::Softmax;

/// q: [Nq, Hq · D], k, v: [Nk, Hkv · D] -> o: [Nq, Hq · D]
pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor, shape: Shape, layout: &Layout) -> Result<(Tensor, Saved)> {
    layout.check(q, k, v, shape)?;
    let (output, softmax) = if fused(&[q, k, v]) {
        let (output, lse) = kernel::forward(q, k, v, shape, layout)?;
        (output, Softmax::LogSumExp(lse))
    } else if on_gpu::serves(&[q, k, v], shape) {
        let (output, lse) = on_gpu::forward(q, k, v, shape, layout)?;
        (output, Softmax::OnGpu(lse))
    } else {
        let (output, groups) = generic::forward(q, k, v, shape, layout)?;
        (output, Softmax::Groups(groups))
    };
    Ok((output.clone(), Saved { q: q.clone(), k: k.clone(), v: v.clone(), output, softmax }))
}

/// dy: [Nq, Hq · D] -> (dq, dk, dv) in the shapes of q, k, v
pub fn backward(saved: &Saved, dy: &Tensor, shape: Shape, layout: &Layout) -> Result<(Tensor, Tensor, Tensor)> {
    let Saved { q, k, v, .. } = saved;
    layout.check(q, k, v, shape)?;
    layout.check_apart()?;
    ensure!(dy.dims() == q.dims(), "dy of {:?} for an output of {:?}", dy.dims(), q.dims());
    match &saved.softmax {
        Softmax::LogSumExp(lse) => kernel::backward(saved, lse, &dy.contiguous()?, shape, layout),
        Softmax::OnGpu(lse) => on_gpu::backward(saved, lse, &dy.contiguous()?, shape, layout),
        Softmax::Groups(groups) => generic::backward(saved, groups, dy, shape, layout),
    }
}

#[cfg(test)]
mod tests;

//! What attention keeps for its backward pass.

use candle_core::Tensor;

/// Probabilities of a group, [B · Hkv, G · Tq, Tk], and its capped scores if there is a cap.
pub type Kept = (Tensor, Option<Tensor>);

/// What the backward pass needs.
pub struct Saved {
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    pub(super) v: Tensor,
    pub(super) output: Tensor,
    pub(super) softmax: Softmax,
}

/// What is kept of the softmax.
pub enum Softmax {
    /// Log-sum-exp of every row, span by span, then head by head, f32.
    LogSumExp(Vec<f32>),
    /// What the generic body keeps of each group.
    Groups(Vec<Kept>),
    /// Log-sum-exp of every row, [Hq, Nq], f32: of the GPU's kernels.
    OnGpu(Tensor),
}

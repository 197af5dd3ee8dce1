//! The operations that are checked, as values: tests put faulty ones in their places and see them found.

use crate::ops::activation::Activation;
use crate::ops::attention::{self, Layout, Shape};
use crate::ops::cross_entropy::{self, Gradients, Losses};
use crate::ops::delta_rule;
use crate::ops::rope::{self, Angles};
use crate::ops::scalar::Scalar;
use crate::ops::{causal_conv, divergence, dropout, gated_mlp, owned, rms_norm};
use anyhow::Result;
use candle_core::Tensor;

type Unary = fn(&Tensor) -> Result<Tensor>;
type Binary = fn(&Tensor, &Tensor) -> Result<Tensor>;
type Rotation = fn(&Tensor, &Angles) -> Result<Tensor>;
type Gate = fn(&Tensor, &Tensor, Activation) -> Result<Tensor>;
type GateBackward = fn(&Tensor, &Tensor, &Tensor, Activation) -> Result<(Tensor, Tensor)>;
type Attention = fn(&Tensor, &Tensor, &Tensor, Shape, &Layout) -> Result<(Tensor, attention::Saved)>;
type AttentionBackward = fn(&attention::Saved, &Tensor, Shape, &Layout) -> Result<(Tensor, Tensor, Tensor)>;
type Convolution = fn(&Tensor, &Tensor, &Layout, Option<&Tensor>) -> Result<(Tensor, causal_conv::Saved)>;
type DeltaRule =
    fn([&Tensor; 3], delta_rule::Shape, &Layout, Option<&Tensor>) -> Result<(Tensor, Tensor, delta_rule::Saved)>;
type Divergence = fn(&Tensor, &Tensor, &Tensor, f64, Option<f64>) -> Result<(Scalar, Tensor)>;
type CrossEntropy = fn(&Tensor, &Tensor, &[u32], f64, bool, Option<f64>) -> Result<(Losses, Gradients)>;

/// Operations by what they do; by default those that training calls.
#[derive(Clone, Copy)]
pub struct Operations {
    pub copy: Unary,
    pub matmul: Binary,
    pub softmax: Unary,
    pub rms_norm: fn(&Tensor, &Tensor, f64) -> Result<(Tensor, rms_norm::Saved)>,
    pub rms_norm_backward: fn(&rms_norm::Saved, &Tensor, &Tensor) -> Result<Tensor>,
    pub rope: Rotation,
    pub rope_backward: Rotation,
    pub gated_mlp: Gate,
    pub gated_mlp_backward: GateBackward,
    pub dropout: fn(&Tensor, f64, u64) -> Result<Tensor>,
    pub attention: Attention,
    pub attention_backward: AttentionBackward,
    pub cross_entropy: CrossEntropy,
    pub divergence: Divergence,
    pub causal_conv: Convolution,
    pub delta_rule: DeltaRule,
}

impl Default for Operations {
    fn default() -> Self {
        Self {
            copy: owned,
            matmul: |a, b| Ok(a.matmul(b)?),
            softmax: |x| Ok(candle_nn::ops::softmax_last_dim(x)?),
            rms_norm: rms_norm::forward,
            rms_norm_backward: rms_norm::backward_input,
            rope: rope::forward,
            rope_backward: rope::backward,
            gated_mlp: gated_mlp::forward,
            gated_mlp_backward: gated_mlp::backward,
            dropout: dropout::apply,
            attention: attention::forward,
            attention_backward: attention::backward,
            cross_entropy: |h, head, targets, scale, want_head, cap| {
                cross_entropy::losses_backward(h, head, targets, scale, want_head, cap)
            },
            divergence: |reference, hidden, head, scale, cap| {
                divergence::forward_backward(reference, hidden, head, scale, cap)
            },
            causal_conv: causal_conv::forward,
            delta_rule: delta_rule::forward,
        }
    }
}

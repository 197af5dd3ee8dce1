//! Self-attention of a block: q, k, v projections, norms of q and k (in some families, of v too), rotation of q and k (in most layers),
//! causal attention, a gate (in some families), output projection.
//!
//! With a gate, q's linear gives 2 D values for each head, its queries and then its gates: attention's output counts σ(gate)-fold.

use super::linear::{Linear, Saved as LinearSaved};
use super::norm::Norm;
use super::parameters::Gradients;
use super::qkv::{Qkv, Saved as QkvSaved};
use super::{LayerCache, Pass, Rotations};
use crate::ops::activation::Activation;
use crate::ops::{attention, gated_mlp, rms_norm, rope};
use anyhow::Result;
use candle_core::Tensor;

#[derive(Clone)]
pub struct Attention {
    pub qkv: Qkv,
    pub gated: bool,
    pub o_proj: Linear,
    /// Norms of queries and keys, before the rotation.
    pub qk_norm: Option<(Norm, Norm)>,
    /// Norm of values, without a weight.
    pub v_norm: Option<Norm>,
    pub shape: attention::Shape,
    /// Index of the pass's rotations that turn this layer, if it is rotated.
    pub rope: Option<usize>,
}

/// What the backward pass needs.
pub struct Saved {
    qkv: QkvSaved,
    qk_norm: Option<(rms_norm::Saved, rms_norm::Saved)>,
    v_norm: Option<rms_norm::Saved>,
    core: attention::Saved,
    /// The gates and what they multiply, if there are any.
    gate: Option<(Tensor, Tensor)>,
    o: LinearSaved,
}

impl Attention {
    /// h: [N, hidden_size] -> [N, hidden_size]. With a cache, keys and values of earlier calls are also seen.
    pub fn forward(&self, h: &Tensor, pass: &Pass, cache: Option<&mut LayerCache>) -> Result<(Tensor, Saved)> {
        let key = pass.dropout_key;
        let ([mut q, mut k, mut v], qkv) = self.qkv.forward(h, key)?;
        let mut gate = None;
        if self.gated {
            let [queries, gates] = self.split(&q)?;
            (q, gate) = (queries, Some(gates));
        }
        let mut norms_saved = None;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            let (q_normed, q_saved) = q_norm.forward_heads(&q)?;
            let (k_normed, k_saved) = k_norm.forward_heads(&k)?;
            (q, k, norms_saved) = (q_normed, k_normed, Some((q_saved, k_saved)));
        }
        let mut v_saved = None;
        if let Some(v_norm) = &self.v_norm {
            let (normed, saved) = v_norm.forward_heads(&v)?;
            (v, v_saved) = (normed, Some(saved));
        }
        if let Some(rope) = self.rope {
            let Rotations { queries, keys } = &pass.rotations[rope];
            (q, k) = (rope::forward(&q, queries)?, rope::forward(&k, keys)?);
        }
        let (k, v) = match cache {
            Some(cache) => cache.append(&k, &v, &pass.layout.spans)?,
            None => (k, v),
        };
        let (core, core_saved) = attention::forward(&q, &k, &v, self.shape, &pass.layout)?;
        let (inner, gate) = match gate {
            Some(gate) => (gated_mlp::forward(&gate, &core, Activation::Sigmoid)?, Some((gate, core))),
            None => (core, None),
        };
        let (y, o_saved) = self.o_proj.forward(&inner, key)?;
        let saved = Saved { qkv, qk_norm: norms_saved, v_norm: v_saved, core: core_saved, gate, o: o_saved };
        Ok((y, saved))
    }

    /// dy -> dh, both [N, hidden_size]
    pub fn backward(&self, saved: &Saved, dy: &Tensor, pass: &Pass, gradients: &mut Gradients) -> Result<Tensor> {
        let key = pass.dropout_key;
        let mut d_core = self.o_proj.backward(&saved.o, dy, key, gradients)?;
        let mut d_gate = None;
        if let Some((gate, core)) = &saved.gate {
            let (of_gate, of_core) = gated_mlp::backward(gate, core, &d_core, Activation::Sigmoid)?;
            (d_core, d_gate) = (of_core, Some(of_gate));
        }
        let (mut dq, mut dk, mut dv) = attention::backward(&saved.core, &d_core, self.shape, &pass.layout)?;
        if let Some(rope) = self.rope {
            let Rotations { queries, keys } = &pass.rotations[rope];
            (dq, dk) = (rope::backward(&dq, queries)?, rope::backward(&dk, keys)?);
        }
        if let (Some(v_norm), Some(saved)) = (&self.v_norm, &saved.v_norm) {
            dv = v_norm.backward_heads(saved, &dv, gradients)?;
        }
        if let (Some((q_norm, k_norm)), Some((q_saved, k_saved))) = (&self.qk_norm, &saved.qk_norm) {
            dq = q_norm.backward_heads(q_saved, &dq, gradients)?;
            dk = k_norm.backward_heads(k_saved, &dk, gradients)?;
        }
        if let Some(d_gate) = d_gate {
            dq = self.joined(&dq, &d_gate)?;
        }
        self.qkv.backward(&saved.qkv, [dq, dk, dv], key, gradients)
    }

    /// [N, H · 2 D] -> queries and gates, [N, H · D] each
    fn split(&self, q: &Tensor) -> Result<[Tensor; 2]> {
        let (n, d) = (q.dim(0)?, self.shape.head_dim);
        let heads = q.reshape((n, self.shape.heads, 2 * d))?;
        let part = |start: usize| heads.narrow(2, start, d)?.contiguous()?.reshape((n, self.shape.heads * d));
        Ok([part(0)?, part(d)?])
    }

    /// The inverse of [`Attention::split`].
    fn joined(&self, queries: &Tensor, gates: &Tensor) -> Result<Tensor> {
        let (n, width) = queries.dims2()?;
        let heads = |x: &Tensor| x.reshape((n, self.shape.heads, self.shape.head_dim));
        Ok(Tensor::cat(&[heads(queries)?, heads(gates)?], 2)?.reshape((n, 2 * width))?)
    }

    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.qkv.linears().iter().chain([&self.o_proj])
    }

    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.qkv.linears_mut().iter_mut().chain([&mut self.o_proj])
    }
}

//! Self-attention of a block: q, k, v projections, norms of q and k (in some families, of v too), rotation of q and k (in most layers),
//! causal attention, perhaps over an earlier layer's keys and values, a gate (in some families), output projection.
//!
//! With a gate, q's linear gives 2 D values for each head, its queries and then its gates: attention's output counts σ(gate)-fold.

use super::linear::{Linear, Saved as LinearSaved};
use super::norm::{self, Norm};
use super::parameters::Gradients;
use super::qkv::{Qkv, Saved as QkvSaved};
use super::{Across, LayerCache, Pass};
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
    pub q_norm: Option<Norm>,
    pub k_norm: Option<Norm>,
    /// Norm of values, without a weight.
    pub v_norm: Option<Norm>,
    /// The layer whose keys and values are seen: its own number if it has some.
    pub keys_of: usize,
    /// Whether later layers see them too.
    pub shares: bool,
    pub shape: attention::Shape,
    /// Index of the pass's rotations that turn this layer, if it is rotated.
    pub rope: Option<usize>,
}

/// What the backward pass needs.
pub struct Saved {
    qkv: QkvSaved,
    q_norm: Option<rms_norm::Saved>,
    /// `None` where keys and values are another layer's.
    keys: Option<KeysSaved>,
    core: attention::Saved,
    /// The gates and what they multiply, if there are any.
    gate: Option<(Tensor, Tensor)>,
    o: LinearSaved,
}

struct KeysSaved {
    k_norm: Option<rms_norm::Saved>,
    v_norm: Option<rms_norm::Saved>,
}

impl Attention {
    /// h: [N, hidden_size] -> [N, hidden_size]. With a cache, keys and values of earlier calls are also seen.
    pub fn forward(
        &self,
        h: &Tensor,
        pass: &Pass,
        cache: Option<&mut LayerCache>,
        across: &mut Across,
    ) -> Result<(Tensor, Saved)> {
        let key = pass.dropout_key;
        let ((mut q, own), qkv) = self.qkv.forward(h, key)?;
        let mut gate = None;
        if self.gated {
            let [queries, gates] = self.split(&q)?;
            (q, gate) = (queries, Some(gates));
        }
        let (mut q, q_norm) = norm::forward_if(self.q_norm.as_ref(), q, Norm::forward_heads)?;
        if let Some(rope) = self.rope {
            q = rope::forward(&q, &pass.rotations[rope].queries)?;
        }
        let (k, v, keys) = match own {
            Some(own) => {
                let (k, v, saved) = self.own_keys(own, pass, cache, across)?;
                (k, v, Some(saved))
            }
            None => {
                let (k, v) = across.shared(self.keys_of)?;
                (k, v, None)
            }
        };
        let (core, core_saved) = attention::forward(&q, &k, &v, self.shape, &pass.layout)?;
        let (inner, gate) = match gate {
            Some(gate) => (gated_mlp::forward(&gate, &core, Activation::Sigmoid)?, Some((gate, core))),
            None => (core, None),
        };
        let (y, o_saved) = self.o_proj.forward(&inner, key)?;
        Ok((y, Saved { qkv, q_norm, keys, core: core_saved, gate, o: o_saved }))
    }

    /// What k and v: [N, Hkv · D] become for attention, those in the cache among them.
    fn own_keys(
        &self,
        (k, v): (Tensor, Tensor),
        pass: &Pass,
        cache: Option<&mut LayerCache>,
        across: &mut Across,
    ) -> Result<(Tensor, Tensor, KeysSaved)> {
        let (mut k, k_norm) = norm::forward_if(self.k_norm.as_ref(), k, Norm::forward_heads)?;
        let (v, v_norm) = norm::forward_if(self.v_norm.as_ref(), v, Norm::forward_heads)?;
        if let Some(rope) = self.rope {
            k = rope::forward(&k, &pass.rotations[rope].keys)?;
        }
        let (k, v) = match cache {
            Some(cache) => cache.append(&k, &v, &pass.layout.spans)?,
            None => (k, v),
        };
        if self.shares {
            across.share(self.keys_of, (k.clone(), v.clone()));
        }
        Ok((k, v, KeysSaved { k_norm, v_norm }))
    }

    /// dy -> dh, both [N, hidden_size]
    pub fn backward(
        &self,
        saved: &Saved,
        dy: &Tensor,
        pass: &Pass,
        across: &mut Across,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let key = pass.dropout_key;
        let mut d_core = self.o_proj.backward(&saved.o, dy, key, gradients)?;
        let mut d_gate = None;
        if let Some((gate, core)) = &saved.gate {
            let (of_gate, of_core) = gated_mlp::backward(gate, core, &d_core, Activation::Sigmoid)?;
            (d_core, d_gate) = (of_core, Some(of_gate));
        }
        let (mut dq, dk, dv) = attention::backward(&saved.core, &d_core, self.shape, &pass.layout)?;
        let own = match &saved.keys {
            Some(keys) => Some(self.own_keys_backward(keys, (dk, dv), pass, across, gradients)?),
            None => {
                across.give_back(self.keys_of, (dk, dv))?;
                None
            }
        };
        if let Some(rope) = self.rope {
            dq = rope::backward(&dq, &pass.rotations[rope].queries)?;
        }
        dq = norm::backward_if(self.q_norm.as_ref().zip(saved.q_norm.as_ref()), dq, Norm::backward_heads, gradients)?;
        if let Some(d_gate) = d_gate {
            dq = self.joined(&dq, &d_gate)?;
        }
        self.qkv.backward(&saved.qkv, (dq, own), key, gradients)
    }

    /// The way back of [`Attention::own_keys`].
    fn own_keys_backward(
        &self,
        saved: &KeysSaved,
        of_seen: (Tensor, Tensor),
        pass: &Pass,
        across: &mut Across,
        gradients: &mut Gradients,
    ) -> Result<(Tensor, Tensor)> {
        let (mut dk, dv) = if self.shares { across.with_gradients(self.keys_of, of_seen)? } else { of_seen };
        if let Some(rope) = self.rope {
            dk = rope::backward(&dk, &pass.rotations[rope].keys)?;
        }
        let dv =
            norm::backward_if(self.v_norm.as_ref().zip(saved.v_norm.as_ref()), dv, Norm::backward_heads, gradients)?;
        Ok((
            norm::backward_if(self.k_norm.as_ref().zip(saved.k_norm.as_ref()), dk, Norm::backward_heads, gradients)?,
            dv,
        ))
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

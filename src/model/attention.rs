//! Self-attention of a block: q, k, v projections, norms of q and k (in some families), rotation of q and k (in most layers),
//! causal attention, output projection.

use super::linear::{Linear, Saved as LinearSaved};
use super::norm::Norm;
use super::parameters::Gradients;
use super::projection::{Projection, Saved as ProjectionSaved};
use super::{LayerCache, Pass, Rotations};
use crate::ops::{attention, rms_norm, rope};
use anyhow::Result;
use candle_core::Tensor;

pub struct Attention {
    /// q, k and v.
    pub qkv: Projection<3>,
    pub o_proj: Linear,
    /// Norms of queries and keys, before the rotation.
    pub qk_norm: Option<(Norm, Norm)>,
    pub shape: attention::Shape,
    /// Index of the pass's rotations that turn this layer, if it is rotated.
    pub rope: Option<usize>,
}

/// What the backward pass needs.
pub struct Saved {
    qkv: ProjectionSaved<3>,
    qk_norm: Option<(rms_norm::Saved, rms_norm::Saved)>,
    core: attention::Saved,
    o: LinearSaved,
}

impl Attention {
    /// h: [N, hidden_size] -> [N, hidden_size]. With a cache, keys and values of earlier calls are also seen.
    pub fn forward(&self, h: &Tensor, pass: &Pass, cache: Option<&mut LayerCache>) -> Result<(Tensor, Saved)> {
        let key = pass.dropout_key;
        let ([mut q, mut k, v], qkv) = self.qkv.forward(h, key)?;
        let mut norms_saved = None;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            let (q_normed, q_saved) = q_norm.forward_heads(&q)?;
            let (k_normed, k_saved) = k_norm.forward_heads(&k)?;
            (q, k, norms_saved) = (q_normed, k_normed, Some((q_saved, k_saved)));
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
        let (y, o_saved) = self.o_proj.forward(&core, key)?;
        let saved = Saved { qkv, qk_norm: norms_saved, core: core_saved, o: o_saved };
        Ok((y, saved))
    }

    /// dy -> dh, both [N, hidden_size]
    pub fn backward(&self, saved: &Saved, dy: &Tensor, pass: &Pass, gradients: &mut Gradients) -> Result<Tensor> {
        let key = pass.dropout_key;
        let d_core = self.o_proj.backward(&saved.o, dy, key, gradients)?;
        let (mut dq, mut dk, dv) = attention::backward(&saved.core, &d_core, self.shape, &pass.layout)?;
        if let Some(rope) = self.rope {
            let Rotations { queries, keys } = &pass.rotations[rope];
            (dq, dk) = (rope::backward(&dq, queries)?, rope::backward(&dk, keys)?);
        }
        if let (Some((q_norm, k_norm)), Some((q_saved, k_saved))) = (&self.qk_norm, &saved.qk_norm) {
            dq = q_norm.backward_heads(q_saved, &dq, gradients)?;
            dk = k_norm.backward_heads(k_saved, &dk, gradients)?;
        }
        self.qkv.backward(&saved.qkv, &[dq, dk, dv], key, gradients)
    }
}

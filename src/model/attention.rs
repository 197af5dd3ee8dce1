//! Self-attention of a block: q, k, v projections, rotation of q and k, causal attention, output projection.

use super::linear::{Linear, Saved as LinearSaved};
use super::parameters::Gradients;
use super::{LayerCache, Pass};
use crate::ops::sum::add;
use crate::ops::{attention, rope};
use anyhow::Result;
use candle_core::Tensor;

pub struct Attention {
    pub q_proj: Linear,
    pub k_proj: Linear,
    pub v_proj: Linear,
    pub o_proj: Linear,
    /// Sizes of one call, all but the batch.
    pub shape: attention::Shape,
}

/// What the backward pass needs.
pub struct Saved {
    q: LinearSaved,
    k: LinearSaved,
    v: LinearSaved,
    core: attention::Saved,
    o: LinearSaved,
}

impl Attention {
    /// h: [B · T, hidden_size] -> [B · T, hidden_size]. With a cache, keys and values of earlier calls are seen too.
    pub fn forward(&self, h: &Tensor, pass: &Pass, cache: Option<&mut LayerCache>) -> Result<(Tensor, Saved)> {
        let key = pass.dropout_key;
        let (q, q_saved) = self.q_proj.forward(h, key)?;
        let (k, k_saved) = self.k_proj.forward(h, key)?;
        let (v, v_saved) = self.v_proj.forward(h, key)?;
        let (q, k) = (rope::forward(&q, &pass.angles)?, rope::forward(&k, &pass.angles)?);
        let (k, v) = match cache {
            Some(cache) => cache.append(&k, &v)?,
            None => (k, v),
        };
        let (core, core_saved) = attention::forward(&q, &k, &v, self.shape(pass))?;
        let (y, o_saved) = self.o_proj.forward(&core, key)?;
        Ok((y, Saved { q: q_saved, k: k_saved, v: v_saved, core: core_saved, o: o_saved }))
    }

    /// dy -> dh, both [B · T, hidden_size]
    pub fn backward(&self, saved: &Saved, dy: &Tensor, pass: &Pass, gradients: &mut Gradients) -> Result<Tensor> {
        let key = pass.dropout_key;
        let d_core = self.o_proj.backward(&saved.o, dy, key, gradients)?;
        let (dq, dk, dv) = attention::backward(&saved.core, &d_core, self.shape(pass))?;
        let (dq, dk) = (rope::backward(&dq, &pass.angles)?, rope::backward(&dk, &pass.angles)?);
        let dh = self.v_proj.backward(&saved.v, &dv, key, gradients)?;
        let dh = add(&dh, &self.k_proj.backward(&saved.k, &dk, key, gradients)?)?;
        add(&dh, &self.q_proj.backward(&saved.q, &dq, key, gradients)?)
    }

    fn shape(&self, pass: &Pass) -> attention::Shape {
        attention::Shape { batch: pass.batch, ..self.shape }
    }
}

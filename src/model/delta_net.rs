//! The gated DeltaNet of a block, in attention's place: projections to q, k and v together, to z, b and a; a causal convolution over
//! q, k and v; the gated delta rule with g of a and β of b; a norm of each head times silu(z); output projection.

use super::linear::{Linear, Saved as LinearSaved};
use super::norm::Norm;
use super::parameters::Gradients;
use super::projection::{Projection, Saved as ProjectionSaved};
use super::{LayerCache, Pass};
use crate::ops::activation::Activation;
use crate::ops::delta_rule::{self, Gates, Shape};
use crate::ops::{cast, causal_conv, gated_mlp, rms_norm};
use anyhow::Result;
use candle_core::Tensor;

#[derive(Clone)]
pub struct DeltaNet {
    /// Its name, `…linear_attn`.
    pub module: String,
    /// q, k and v together; z; b; a.
    pub inputs: Projection<4>,
    /// [channels, 1, window], f32
    pub conv: Tensor,
    /// [Hv], f32
    pub a_log: Tensor,
    pub dt_bias: Tensor,
    pub norm: Norm,
    pub out_proj: Linear,
    pub heads: Shape,
    /// Whether what is no linear and no norm gets gradients.
    pub trains: bool,
}

/// What the backward pass needs.
pub struct Saved {
    inputs: ProjectionSaved<4>,
    conv: causal_conv::Saved,
    gates: Gates,
    core: delta_rule::Saved,
    norm: rms_norm::Saved,
    /// z and what silu(z) multiplies: [N, Hv · Dv]
    z: Tensor,
    normed: Tensor,
    out: LinearSaved,
}

impl DeltaNet {
    /// h: [N, hidden_size] -> [N, hidden_size]. With a cache, sequences go on from where earlier calls left them.
    pub fn forward(&self, h: &Tensor, pass: &Pass, cache: Option<&mut LayerCache>) -> Result<(Tensor, Saved)> {
        let (key, spans, conv) = (pass.dropout_key, &pass.layout.spans, self.conv.squeeze(1)?);
        let ([mixed, z, b, a], inputs) = self.inputs.forward(h, key)?;
        let before = cache.as_ref().map(|cache| cache.recall(spans)).transpose()?.flatten();
        let (rows, state) = before.as_ref().map_or((None, None), |(rows, state)| (Some(rows), Some(state)));
        let (convolved, conv_saved) = causal_conv::forward(&mixed, &conv, &pass.layout, rows)?;
        let gates = Gates::forward(&a, &b, &self.a_log, &self.dt_bias)?;
        let (core, state, core_saved) =
            delta_rule::forward([&convolved, &gates.decay, &gates.beta], self.heads, &pass.layout, state)?;
        if let Some(cache) = cache {
            cache.remember(spans, &causal_conv::ends(&mixed, conv.dim(1)?, spans, rows)?, &state)?;
        }
        let (normed, norm) = self.norm.forward_heads(&core)?;
        let inner = gated_mlp::forward(&z, &normed, Activation::Silu)?;
        let (y, out) = self.out_proj.forward(&inner, key)?;
        Ok((y, Saved { inputs, conv: conv_saved, gates, core: core_saved, norm, z, normed, out }))
    }

    /// dy -> dh, both [N, hidden_size]
    pub fn backward(&self, saved: &Saved, dy: &Tensor, pass: &Pass, gradients: &mut Gradients) -> Result<Tensor> {
        let (key, layout) = (pass.dropout_key, &pass.layout);
        let d_inner = self.out_proj.backward(&saved.out, dy, key, gradients)?;
        let (dz, d_normed) = gated_mlp::backward(&saved.z, &saved.normed, &d_inner, Activation::Silu)?;
        let d_core = self.norm.backward_heads(&saved.norm, &d_normed, gradients)?;
        let [d_convolved, d_decay, d_beta] = delta_rule::backward(&saved.core, &d_core, self.heads, layout)?;
        let ([da, db], [d_log, d_bias]) = saved.gates.backward(&d_decay, &d_beta)?;
        let (d_mixed, d_conv) =
            causal_conv::backward(&saved.conv, &self.conv.squeeze(1)?, &d_convolved, layout, self.trains)?;
        if let Some(d_conv) = d_conv {
            for (name, gradient) in [("A_log", d_log), ("dt_bias", d_bias), ("conv1d.weight", d_conv.unsqueeze(1)?)] {
                gradients.add(&format!("{}.{name}", self.module), gradient)?;
            }
        }
        let [da, db] = [da, db].map(|x| cast(&x, dy.dtype()));
        self.inputs.backward(&saved.inputs, &[d_mixed, dz, db?, da?], key, gradients)
    }

    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.inputs.linears().iter().chain([&self.out_proj])
    }

    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.inputs.linears_mut().iter_mut().chain([&mut self.out_proj])
    }
}

//! Inputs that each layer has besides the hidden states, from the tokens and their embeddings (Gemma's per-layer embeddings).
//!
//! For all L layers at once: p = (norm(W e / √H) + √P E[ids]) / √2, with e: [N, H] the embeddings, W: [L · P, H], E: [V, L · P], and
//! the norm over each layer's P values. At the end of its block a layer adds norm(Q (act(G x) ∘ p)) to x: [N, H], with G: [P, H] and
//! Q: [H, P].

use super::linear::{Linear, Saved as LinearSaved};
use super::norm::Norm;
use super::parameters::Gradients;
use super::{Across, Pass};
use crate::names::LAYER_EMBEDDING;
use crate::ops::activation::Activation;
use crate::ops::sum::{add, scaled};
use crate::ops::traffic::{self, counted};
use crate::ops::weight::Weight;
use crate::ops::{gated_mlp, rms_norm, rounded};
use anyhow::Result;
use candle_core::{DType, Tensor};
use std::f64::consts::FRAC_1_SQRT_2;

/// The inputs of all layers.
#[derive(Clone)]
pub struct LayerInputs {
    /// E
    pub embedding: Weight,
    /// W
    pub projection: Linear,
    pub norm: Norm,
    /// 1 / √H
    pub context_scale: f64,
    pub layers: usize,
    /// P
    pub size: usize,
    /// Type of the activations.
    pub dtype: DType,
    /// Whether `embedding` gets a gradient.
    pub trains: bool,
}

/// What the backward pass needs.
pub struct Saved {
    projection: LinearSaved,
    norm: rms_norm::Saved,
}

impl LayerInputs {
    /// embedded: [N, H] -> for each layer [N, P]
    pub fn forward(&self, ids: &[u32], embedded: &Tensor) -> Result<(Vec<Tensor>, Saved)> {
        let (context, projection) = self.projection.forward(embedded, None)?;
        let (context, norm) = self.norm.forward_heads(&scaled(&context, self.context_scale)?)?;
        let rows = self.embedding.rows(ids, self.dtype)?;
        // Of the embedding only these are read.
        traffic::launch(&[&rows], &[&rows]);
        let tokens = scaled(&rows, self.token_scale())?;
        let all = scaled(&add(&context, &tokens)?, FRAC_1_SQRT_2)?;
        let of = |layer: usize| {
            let part = all.narrow(1, layer * self.size, self.size)?;
            Ok(counted(part.contiguous()?, &[&part]))
        };
        Ok(((0..self.layers).map(of).collect::<Result<_>>()?, Saved { projection, norm }))
    }

    /// The gradients of each layer's input, [N, P] -> that of `embedded`, [N, H]; adds those of the weights.
    pub fn backward(
        &self,
        saved: &Saved,
        ids: &[u32],
        of_inputs: &[Tensor],
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let together = counted(Tensor::cat(of_inputs, 1)?, &of_inputs.iter().collect::<Vec<_>>());
        let dp = scaled(&together, FRAC_1_SQRT_2)?;
        if self.trains {
            let ids = Tensor::new(ids, dp.device())?;
            let rows = (dp.to_dtype(DType::F32)? * self.token_scale())?;
            let gradient = self.embedding.tensor()?.zeros_like()?.index_add(&ids, &rows, 0)?;
            gradients.add(LAYER_EMBEDDING, gradient)?;
        }
        let d_context = self.norm.backward_heads(&saved.norm, &dp, gradients)?;
        let d_context = scaled(&d_context, self.context_scale)?;
        self.projection.backward(&saved.projection, &d_context, None, gradients)
    }

    /// Rounded to the compute type, as in transformers.
    fn token_scale(&self) -> f64 {
        rounded((self.size as f64).sqrt(), self.dtype)
    }
}

/// The part of a block that takes the layer's input in.
#[derive(Clone)]
pub struct Intake {
    pub layer: usize,
    /// G
    pub gate: Linear,
    /// Q
    pub projection: Linear,
    pub norm: Norm,
    pub activation: Activation,
}

/// What the backward pass of an [`Intake`] needs.
pub struct IntakeSaved {
    /// G x
    gated: Tensor,
    input: Tensor,
    gate: LinearSaved,
    projection: LinearSaved,
    norm: rms_norm::Saved,
}

impl Intake {
    /// x: [N, H] -> what is added to it, [N, H]
    pub fn forward(&self, x: &Tensor, pass: &Pass, across: &Across) -> Result<(Tensor, IntakeSaved)> {
        let input = across.input(self.layer)?.clone();
        let (gated, gate) = self.gate.forward(x, pass.dropout_key)?;
        let inner = gated_mlp::forward(&gated, &input, self.activation)?;
        let (y, projection) = self.projection.forward(&inner, pass.dropout_key)?;
        let (y, norm) = self.norm.forward(&y)?;
        Ok((y, IntakeSaved { gated, input, gate, projection, norm }))
    }

    /// dy -> dx, both [N, H]; hands on the gradient of the layer's input if the model trains.
    pub fn backward(
        &self,
        saved: &IntakeSaved,
        dy: &Tensor,
        pass: &Pass,
        across: &mut Across,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let dy = self.norm.backward(&saved.norm, dy, gradients)?;
        let d_inner = self.projection.backward(&saved.projection, &dy, pass.dropout_key, gradients)?;
        let (d_gated, d_input) = gated_mlp::backward(&saved.gated, &saved.input, &d_inner, self.activation)?;
        if self.gate.trains {
            across.input_gradients.insert(self.layer, d_input);
        }
        self.gate.backward(&saved.gate, &d_gated, pass.dropout_key, gradients)
    }
}

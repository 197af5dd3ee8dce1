//! One decoder block: x₁ = x + mixer(norm(x)); y = x₁ + mlp(norm(x₁)), the mixer being attention or a gated DeltaNet. Some families
//! norm the outputs of mixer and MLP too, or only those, before each sum, or scale them, add what comes of an input of the layer's own, or scale y. The backward is the same, bottom to top.

use super::layer_inputs::{Intake, IntakeSaved};
use super::linear::Linear;
use super::mixer::{Mixer, Saved as MixerSaved};
use super::mixture::{Mixture, Saved as MixtureSaved};
use super::mlp::{Mlp, Saved as MlpSaved};
use super::norm::{self, Norm};
use super::parameters::Gradients;
use super::shared_expert::SharedExpert;
use super::{Across, LayerCache, Pass};
use crate::ops::rms_norm;
use crate::ops::sum::{add, scaled_by};
use crate::ops::weight::{self, Weight};
use anyhow::Result;
use candle_core::Tensor;

#[derive(Clone)]
pub struct Block {
    pub attention_norm: Option<Norm>,
    pub mixer: Mixer,
    pub attention_post_norm: Option<Norm>,
    pub mlp_norm: Option<Norm>,
    pub mlp: Feedforward,
    pub mlp_post_norm: Option<Norm>,
    /// Factor of what attention and MLP add to the residual stream.
    pub residual_scale: Option<f64>,
    /// What takes the layer's own input in.
    pub intake: Option<Intake>,
    /// Factor of what the block returns.
    pub layer_scale: Option<f64>,
}

/// What the backward pass needs.
pub struct Saved {
    mixed: Mixed,
    mlp: FeedforwardSaved,
    mlp_post_norm: Option<rms_norm::Saved>,
    intake: Option<IntakeSaved>,
}

/// What the backward pass needs of all that is before the MLP.
struct Mixed {
    attention_norm: Option<rms_norm::Saved>,
    mixer: MixerSaved,
    attention_post_norm: Option<rms_norm::Saved>,
    mlp_norm: Option<rms_norm::Saved>,
}

/// What follows attention in a block.
#[derive(Clone)]
pub enum Feedforward {
    Mlp(Box<Mlp>),
    Mixture(Box<Mixture>),
}

/// What the backward pass of a [`Feedforward`] needs.
enum FeedforwardSaved {
    Mlp(MlpSaved),
    Mixture(MixtureSaved),
}

impl Feedforward {
    fn forward(&self, h: &Tensor, pass: &Pass) -> Result<(Tensor, FeedforwardSaved)> {
        Ok(match self {
            Self::Mlp(mlp) => {
                let (y, saved) = mlp.forward(h, pass)?;
                (y, FeedforwardSaved::Mlp(saved))
            }
            Self::Mixture(mixture) => {
                let (y, saved) = mixture.forward(h, pass)?;
                (y, FeedforwardSaved::Mixture(saved))
            }
        })
    }

    fn backward(
        &self,
        saved: &FeedforwardSaved,
        dy: &Tensor,
        pass: &Pass,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        match (self, saved) {
            (Self::Mlp(mlp), FeedforwardSaved::Mlp(saved)) => mlp.backward(saved, dy, pass, gradients),
            (Self::Mixture(mixture), FeedforwardSaved::Mixture(saved)) => mixture.backward(saved, dy, pass, gradients),
            _ => anyhow::bail!("a block was saved with another MLP"),
        }
    }
}

impl Block {
    /// x: [N, hidden_size] -> y: [N, hidden_size]
    pub fn forward(
        &self,
        x: &Tensor,
        pass: &Pass,
        cache: Option<&mut LayerCache>,
        across: &mut Across,
    ) -> Result<(Tensor, Saved)> {
        let (x, h, mixed) = self.mix(x, pass, cache, across)?;
        let (m, mlp) = self.mlp.forward(&h, pass)?;
        let (m, mlp_post_norm) = norm::forward_if(self.mlp_post_norm.as_ref(), m, Norm::forward)?;
        let (mut y, mut intake) = (add(&x, &self.residual(m)?)?, None);
        if let Some(own) = &self.intake {
            let (added, saved) = own.forward(&y, pass, across)?;
            (y, intake) = (add(&y, &added)?, Some(saved));
        }
        Ok((scaled_by(y, self.layer_scale)?, Saved { mixed, mlp, mlp_post_norm, intake }))
    }

    /// What [`Block::forward`] saves over whole sequences, without the last product where only y takes it.
    pub fn saved(&self, x: &Tensor, pass: &Pass, across: &mut Across) -> Result<Saved> {
        let (Feedforward::Mlp(mlp), None, None) = (&self.mlp, &self.mlp_post_norm, &self.intake) else {
            return Ok(self.forward(x, pass, None, across)?.1);
        };
        let (_, h, mixed) = self.mix(x, pass, None, across)?;
        Ok(Saved { mixed, mlp: FeedforwardSaved::Mlp(mlp.saved(&h, pass)?), mlp_post_norm: None, intake: None })
    }

    /// x -> (x₁, the MLP's input), both [N, hidden_size]
    fn mix(
        &self,
        x: &Tensor,
        pass: &Pass,
        cache: Option<&mut LayerCache>,
        across: &mut Across,
    ) -> Result<(Tensor, Tensor, Mixed)> {
        let (h, attention_norm) = norm::forward_if(self.attention_norm.as_ref(), x.clone(), Norm::forward)?;
        let (a, mixer) = self.mixer.forward(&h, pass, cache, across)?;
        let (a, attention_post_norm) = norm::forward_if(self.attention_post_norm.as_ref(), a, Norm::forward)?;
        let (x, h, mlp_norm) = forward_sum(self.mlp_norm.as_ref(), x, &self.residual(a)?)?;
        Ok((x, h, Mixed { attention_norm, mixer, attention_post_norm, mlp_norm }))
    }

    /// dy -> dx, both [N, hidden_size]
    pub fn backward(
        &self,
        saved: &Saved,
        dy: &Tensor,
        pass: &Pass,
        across: &mut Across,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let mut dy = scaled_by(dy.clone(), self.layer_scale)?;
        if let (Some(own), Some(saved)) = (&self.intake, &saved.intake) {
            dy = add(&dy, &own.backward(saved, &dy, pass, across, gradients)?)?;
        }
        let dm = self.residual(dy.clone())?;
        let dm = norm::backward_if(
            self.mlp_post_norm.as_ref().zip(saved.mlp_post_norm.as_ref()),
            dm,
            Norm::backward,
            gradients,
        )?;
        let (dh, mixed) = (self.mlp.backward(&saved.mlp, &dm, pass, gradients)?, &saved.mixed);
        let dx = backward_sum(self.mlp_norm.as_ref(), mixed.mlp_norm.as_ref(), &dh, &dy, gradients)?;
        let da = self.residual(dx.clone())?;
        let da = norm::backward_if(
            self.attention_post_norm.as_ref().zip(mixed.attention_post_norm.as_ref()),
            da,
            Norm::backward,
            gradients,
        )?;
        let dh = self.mixer.backward(&mixed.mixer, &da, pass, across, gradients)?;
        backward_sum(self.attention_norm.as_ref(), mixed.attention_norm.as_ref(), &dh, &dx, gradients)
    }

    /// What is added to the residual stream, or its gradient: both are scaled alike.
    fn residual(&self, x: Tensor) -> Result<Tensor> {
        scaled_by(x, self.residual_scale)
    }

    /// The block's linears that adapters may be attached to, in the order of [`crate::names::BLOCK_LINEARS`].
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let feedforward: Vec<&Linear> = match &self.mlp {
            Feedforward::Mlp(mlp) => mlp.linears().collect(),
            Feedforward::Mixture(mixture) => mixture.shared.iter().flat_map(SharedExpert::linears).collect(),
        };
        let intake = self.intake.iter().flat_map(|own| [&own.gate, &own.projection]);
        self.mixer.linears().into_iter().chain(feedforward).chain(intake)
    }

    /// Keeps the widened copies of its linears, not of a mixture's many experts: see [`Weight::keep_widened`].
    pub fn keep_widened(&self) -> weight::Kept<'_> {
        Weight::keep_widened(self.linears().map(|linear| &linear.weight))
    }

    /// As [`Block::linears`], to attach adapters.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let feedforward: Vec<&mut Linear> = match &mut self.mlp {
            Feedforward::Mlp(mlp) => mlp.linears_mut().collect(),
            Feedforward::Mixture(mixture) => mixture.shared.iter_mut().flat_map(SharedExpert::linears_mut).collect(),
        };
        let intake = self.intake.iter_mut().flat_map(|own| [&mut own.gate, &mut own.projection]);
        self.mixer.linears_mut().into_iter().chain(feedforward).chain(intake)
    }

    /// The matrices of a mixture that take no adapters, by module.
    pub fn mixture_weights(&self) -> impl Iterator<Item = (&str, &Weight)> {
        let mixture = match &self.mlp {
            Feedforward::Mlp(_) => None,
            Feedforward::Mixture(mixture) => Some(mixture.as_ref()),
        };
        mixture.into_iter().flat_map(Mixture::weights)
    }
}

/// x + added, its norm (itself without one), and what the norm saves.
fn forward_sum(norm: Option<&Norm>, x: &Tensor, added: &Tensor) -> Result<(Tensor, Tensor, Option<rms_norm::Saved>)> {
    let Some(norm) = norm else {
        let sum = add(x, added)?;
        return Ok((sum.clone(), sum, None));
    };
    let (sum, y, saved) = norm.forward_sum(x, added)?;
    Ok((sum, y, Some(saved)))
}

/// The norm's backward pass, plus `added`.
fn backward_sum(
    norm: Option<&Norm>,
    saved: Option<&rms_norm::Saved>,
    dy: &Tensor,
    added: &Tensor,
    gradients: &mut Gradients,
) -> Result<Tensor> {
    match (norm, saved) {
        (Some(norm), Some(saved)) => norm.backward_sum(saved, dy, added, gradients),
        _ => add(dy, added),
    }
}

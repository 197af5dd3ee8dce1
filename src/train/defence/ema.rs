//! An exponential moving average of what trains, as the result of the run (Kim et al., arXiv 2508.12531).
//!
//! With θ_t all that trains after step t (A and B of every adapted module, or every weight) and ā its average:
//!
//! ```text
//! ā_0 = θ_0        ā_t = β ā_{t−1} + (1 − β) θ_t        β = defence.decay
//! ```
//!
//! θ is trained as without a defence; ā is what is measured, selected by and exported. Steps that are skipped leave it as it is. A
//! share βᵗ of ā_t is the model at the start. Of the paper only the abstract could be read: this is the form that it names, without
//! a correction of the start.
//!
//! A and B are averaged each by itself, so that ā is an adapter of the same rank: its update is B̄ Ā, not the mean of B A. They differ
//! by the covariance of B and A over the steps averaged.
//!
//! ā is part of a checkpoint, whose folder holds θ: training goes on from there.

use super::contract::{Defence, Needs};
use super::copies::Copies;
use super::options::DefenceOptions;
use crate::model::{Decoder, Parameters};
use crate::ops::owned;
use crate::optim::Average;
use anyhow::Result;
use candle_core::Tensor;

pub struct Ema {
    decay: f64,
    /// ā; θ while the two are exchanged.
    average: Copies,
}

impl Ema {
    pub fn new(options: &DefenceOptions) -> Self {
        Self { decay: options.decay, average: Copies::new("ema") }
    }
}

impl Defence for Ema {
    fn needs(&self) -> Needs {
        Needs { copies: 1, ..Needs::default() }
    }

    fn start(&mut self, model: &mut Decoder) -> Result<()> {
        self.average.take(model.parameters())
    }

    fn taken(&mut self, parameters: &Parameters) -> Result<()> {
        let average = Average::of_values(self.decay);
        parameters
            .iter()
            .try_for_each(|(name, parameter)| average.take_in(self.average.of(name)?, parameter.as_tensor()))
    }

    fn exchange(&mut self, parameters: &Parameters) -> Result<()> {
        for (name, parameter) in parameters {
            let other = self.average.of(name)?;
            let kept = owned(parameter.as_tensor())?;
            parameter.set(other)?;
            *other = kept;
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<(String, Tensor)> {
        self.average.named()
    }

    fn restore(&mut self, parameters: &Parameters, read: &dyn Fn(&str) -> Result<Tensor>) -> Result<()> {
        self.average.restore(parameters, read)
    }
}

//! Lisa: bi-state optimisation with a proximal term (Huang et al., arXiv 2405.18641).
//!
//! Alternates `alignment_steps` optimizer steps on safety data with `finetune_steps` on the training data. In either
//! state the loss includes (ρ/2) ‖θ − θ'‖², where θ is all that trains and θ' its value at the last switch, so that
//! neither state runs away from the other. As in the released code (git-disl/Lisa; its script has 100, 900 and ρ = 1),
//! the alignment state comes first, an alignment step skips the training batch that it replaces, one AdamW serves both,
//! and the first tenth of the steps has no proximal term.
//!
//! The state is a function of the step's number. θ' is part of a checkpoint.

use super::contract::{Defence, Needs};
use super::copies::Copies;
use super::options::DefenceOptions;
use super::own_batches::{ALIGNMENT_DATA, alignment_samples};
use crate::config::Settings;
use crate::data::Dataset;
use crate::ensure_valid;
use crate::model::{Decoder, Gradients, Parameters};
use crate::ops::scalar::Scalar;
use crate::ops::sum::square_sum;
use crate::report::State;
use crate::train::plan::{Pool, StepSamples};
use anyhow::{Context, Result};
use candle_core::Tensor;
use std::sync::Arc;

/// What θ' is called in a checkpoint.
const ANCHOR: &str = "anchor";

pub struct Lisa {
    options: DefenceOptions,
    /// Steps up to and including this one (from 0) have no proximal term.
    free: f64,
    /// The safety samples, once loaded.
    alignment: Option<Pool>,
    /// θ'
    anchor: Copies,
}

impl Lisa {
    pub fn new(options: &DefenceOptions) -> Self {
        Self { options: options.clone(), free: 0.0, alignment: None, anchor: Copies::new(ANCHOR) }
    }

    /// How many alignment steps come before `step` (from 0), if `step` is one itself.
    pub fn alignment_step(&self, step: usize) -> Option<usize> {
        let (round, within) = (step / self.round(), step % self.round());
        let steps = self.options.alignment_steps;
        (within < steps).then_some(round * steps + within)
    }

    fn round(&self) -> usize {
        self.options.alignment_steps + self.options.finetune_steps
    }

    /// Sets θ' before a step that follows a switch.
    fn anchor_at(&mut self, step: usize, parameters: &Parameters) -> Result<()> {
        let within = step % self.round();
        if within == 0 || within == self.options.alignment_steps {
            self.anchor.take(parameters)?;
        }
        Ok(())
    }

    /// The proximal term's value, parameter by parameter; adds its gradients.
    fn pull_back(&mut self, step: usize, parameters: &Parameters, gradients: &mut Gradients) -> Result<Vec<Scalar>> {
        if step as f64 <= self.free || self.options.rho == 0.0 {
            return Ok(vec![]);
        }
        let mut values = Vec::with_capacity(parameters.len());
        for (name, parameter) in parameters {
            let moved = (parameter.as_detached_tensor() - &*self.anchor.of(name)?)?;
            values.push(square_sum(&moved)?.times(0.5 * self.options.rho));
            gradients.add(name, (moved * self.options.rho)?)?;
        }
        Ok(values)
    }
}

impl Defence for Lisa {
    fn needs(&self) -> Needs {
        Needs { samples: alignment_samples(&self.options), copies: 1, ..Needs::default() }
    }

    fn prepare(&mut self, own: Option<Arc<Dataset>>, settings: &Settings, total_steps: usize) -> Result<()> {
        let steps = self.options.alignment_steps;
        ensure_valid!(
            steps < total_steps,
            "defence.alignment_steps = {steps}, but the run has {total_steps} steps: none would be left for data.train; \
             lower it, and defence.finetune_steps with it"
        );
        self.free = self.options.proximal_after * total_steps as f64;
        let pool = own.map(|set| Pool::new(set, &settings.train, &settings.data)).transpose();
        self.alignment = pool.context(ALIGNMENT_DATA)?;
        Ok(())
    }

    fn own_samples(&mut self) -> Option<&mut Pool> {
        self.alignment.as_mut()
    }

    fn samples(&mut self, step: usize, train: &mut Pool) -> Result<StepSamples> {
        let alignment_step = self.alignment_step(step);
        let alignment = self.alignment.as_mut().context("no samples of defence.alignment_data")?;
        Ok(match alignment_step {
            Some(step) => alignment.samples(step, Some(State::Alignment)),
            None => train.samples(step, Some(State::Finetune)),
        })
    }

    fn begin(&mut self, step: usize, parameters: &Parameters) -> Result<()> {
        self.anchor_at(step, parameters)
    }

    fn add_to(&mut self, step: usize, model: &mut Decoder, gradients: &mut Gradients) -> Result<Option<Vec<Scalar>>> {
        self.pull_back(step, model.parameters(), gradients).map(Some)
    }

    /// θ' by `<parameter>.anchor`.
    fn tensors(&self) -> Vec<(String, Tensor)> {
        self.anchor.named()
    }

    fn restore(&mut self, parameters: &Parameters, read: &dyn Fn(&str) -> Result<Tensor>) -> Result<()> {
        self.anchor.restore(parameters, read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use std::collections::BTreeMap;

    fn lisa() -> Lisa {
        let options = DefenceOptions { alignment_steps: 2, finetune_steps: 3, rho: 0.5, ..Default::default() };
        let mut lisa = Lisa::new(&options);
        lisa.prepare(None, &Settings::default(), 10).unwrap();
        lisa
    }

    #[test]
    fn states_alternate() {
        let found: Vec<Option<usize>> = (0..8).map(|step| lisa().alignment_step(step)).collect();
        assert_eq!(found, [Some(0), Some(1), None, None, None, Some(2), Some(3), None]);
    }

    #[test]
    fn the_proximal_term_pulls_back_to_the_last_switch() {
        let mut lisa = lisa();
        let var = Var::new(&[[1f32, 2.0]], &Device::Cpu).unwrap();
        let parameters = Parameters::from([("w".to_string(), var.clone())]);
        let term = |lisa: &mut Lisa, step| {
            let mut gradients = Gradients::default();
            let values = lisa.pull_back(step, &parameters, &mut gradients).unwrap();
            let value: f64 = values.iter().map(|value| value.read().unwrap()).sum();
            (value, gradients.get("w").ok().map(|g| g.flatten_all().unwrap().to_vec1::<f32>().unwrap()))
        };
        lisa.anchor_at(0, &parameters).unwrap();
        var.set(&Tensor::new(&[[4f32, 2.0]], &Device::Cpu).unwrap()).unwrap();
        lisa.anchor_at(1, &parameters).unwrap();
        // The first tenth of ten steps has no proximal term.
        assert_eq!(term(&mut lisa, 1), (0.0, None));
        assert_eq!(term(&mut lisa, 3), (0.25 * 9.0, Some(vec![1.5, 0.0])));
        lisa.anchor_at(2, &parameters).unwrap();
        assert_eq!(term(&mut lisa, 3), (0.0, Some(vec![0.0, 0.0])));
        let kept: BTreeMap<String, Tensor> = lisa.tensors().into_iter().collect();
        let mut other = Lisa { anchor: Copies::new(ANCHOR), ..lisa };
        other.restore(&parameters, &|name| Ok(kept[name].clone())).unwrap();
        assert_eq!(term(&mut other, 3).0, 0.0);
    }
}

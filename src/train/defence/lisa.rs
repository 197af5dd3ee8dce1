//! Lisa: bi-state optimisation with a proximal term (Huang et al., arXiv 2405.18641).
//!
//! Rounds of `alignment_steps` optimizer steps on safety data and `finetune_steps` on the training data. In either state
//! the loss carries (ρ/2) ‖θ − θ'‖², where θ is all that trains and θ' is θ as it was at the last switch, so that neither
//! state runs away from the other. As in the released code (git-disl/Lisa, whose script has 100, 900 and ρ = 1): the
//! alignment state comes first, a step of one state passes over the training batch that it would have been, one AdamW
//! serves both, and the first tenth of the steps has no proximal term.
//!
//! The state is a function of the step's number. θ' is part of a checkpoint.

use super::options::{DefenceKind, DefenceOptions};
use crate::config::Settings;
use crate::data::Dataset;
use crate::ensure_valid;
use crate::hub::{self, ResolvedFile, Split};
use crate::model::{Gradients, Parameters};
use crate::ops::scalar::Scalar;
use crate::ops::sum::square_sum;
use crate::train::plan::Plan;
use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use std::collections::BTreeMap;

/// The safety data of a run, on this machine; none unless it is Lisa's.
///
/// # Errors
/// As [`hub::resolve_dataset`].
pub fn alignment_file(options: &DefenceOptions) -> Result<Option<ResolvedFile>> {
    let file = options.alignment_data.as_ref().filter(|_| options.kind == DefenceKind::Lisa);
    let resolve = |file: &String| hub::resolve_dataset(file, Split::Train, false).context("defence.alignment_data");
    file.map(resolve).transpose()
}

/// Safety samples, and which of them go into which alignment step.
pub struct Alignment {
    pub set: Dataset,
    pub plan: Plan,
}

impl Alignment {
    /// As [`Alignment::plan`].
    pub fn new(set: Dataset, settings: &Settings, total_steps: usize) -> Result<Self> {
        let plan = Self::plan(&set, settings, total_steps)?;
        Ok(Self { set, plan })
    }

    /// Which samples go into which step. `total_steps`: of the run.
    ///
    /// # Errors
    /// No step left for the training data; no full batch where partial ones are dropped.
    pub fn plan(set: &Dataset, settings: &Settings, total_steps: usize) -> Result<Plan> {
        let steps = settings.defence.alignment_steps;
        ensure_valid!(
            steps < total_steps,
            "defence.alignment_steps = {steps}, but the run has {total_steps} steps: none would be left for data.train; \
             lower it, and defence.finetune_steps with it"
        );
        let lengths: Vec<usize> = set.examples.iter().map(|example| example.input_ids.len()).collect();
        Plan::new(&lengths, &settings.train, &settings.data).context("defence.alignment_data")
    }
}

pub struct Lisa {
    alignment_steps: usize,
    finetune_steps: usize,
    rho: f64,
    /// Steps up to and including this one (from 0) have no proximal term.
    free: f64,
    /// θ', by parameter.
    anchor: BTreeMap<String, Tensor>,
}

impl Lisa {
    /// For a run of `total_steps`.
    pub fn new(options: &DefenceOptions, total_steps: usize) -> Self {
        Self {
            alignment_steps: options.alignment_steps,
            finetune_steps: options.finetune_steps,
            rho: options.rho,
            free: options.proximal_after * total_steps as f64,
            anchor: BTreeMap::new(),
        }
    }

    /// How many alignment steps come before `step` (from 0), if that is one itself.
    pub fn alignment_step(&self, step: usize) -> Option<usize> {
        let (round, within) = (step / self.round(), step % self.round());
        (within < self.alignment_steps).then_some(round * self.alignment_steps + within)
    }

    fn round(&self) -> usize {
        self.alignment_steps + self.finetune_steps
    }

    /// To be called before each step.
    pub fn begin(&mut self, step: usize, parameters: &Parameters) -> Result<()> {
        let within = step % self.round();
        if within == 0 || within == self.alignment_steps {
            for (name, parameter) in parameters {
                self.anchor.insert(name.clone(), parameter.as_tensor().copy()?.detach());
            }
        }
        Ok(())
    }

    /// The proximal term's value, parameter by parameter; adds its gradients.
    pub fn add_to(&self, step: usize, parameters: &Parameters, gradients: &mut Gradients) -> Result<Vec<Scalar>> {
        if step as f64 <= self.free || self.rho == 0.0 {
            return Ok(vec![]);
        }
        let mut values = Vec::with_capacity(parameters.len());
        for (name, parameter) in parameters {
            let anchor = self.anchor.get(name).with_context(|| format!("no anchor of {name}"))?;
            let moved = (parameter.as_detached_tensor() - anchor)?;
            values.push(square_sum(&moved)?.times(0.5 * self.rho));
            gradients.add(name, (moved * self.rho)?)?;
        }
        Ok(values)
    }

    /// θ' by `<parameter>.anchor`.
    pub fn anchors(&self) -> impl Iterator<Item = (String, Tensor)> {
        self.anchor.iter().map(|(name, tensor)| (anchor_name(name), tensor.clone()))
    }

    /// Sets θ' to what `read` gives by the names of [`Lisa::anchors`].
    pub fn restore(&mut self, parameters: &Parameters, read: impl Fn(&str) -> Result<Tensor>) -> Result<()> {
        for (name, parameter) in parameters {
            let anchor = read(&anchor_name(name))?;
            let (found, expected) = (anchor.dims(), parameter.dims());
            ensure!(found == expected, "the anchor of {name} has shape {found:?}, the parameter {expected:?}");
            self.anchor.insert(name.clone(), anchor);
        }
        Ok(())
    }
}

fn anchor_name(parameter: &str) -> String {
    format!("{parameter}.anchor")
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    fn lisa() -> Lisa {
        let options = DefenceOptions { alignment_steps: 2, finetune_steps: 3, rho: 0.5, ..Default::default() };
        Lisa::new(&options, 10)
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
        let term = |lisa: &Lisa, step| {
            let mut gradients = Gradients::default();
            let values = lisa.add_to(step, &parameters, &mut gradients).unwrap();
            let value: f64 = values.iter().map(|value| value.read().unwrap()).sum();
            (value, gradients.get("w").ok().map(|g| g.flatten_all().unwrap().to_vec1::<f32>().unwrap()))
        };
        lisa.begin(0, &parameters).unwrap();
        var.set(&Tensor::new(&[[4f32, 2.0]], &Device::Cpu).unwrap()).unwrap();
        lisa.begin(1, &parameters).unwrap();
        // The first tenth of ten steps is free of it.
        assert_eq!(term(&lisa, 1), (0.0, None));
        assert_eq!(term(&lisa, 3), (0.25 * 9.0, Some(vec![1.5, 0.0])));
        lisa.begin(2, &parameters).unwrap();
        assert_eq!(term(&lisa, 3), (0.0, Some(vec![0.0, 0.0])));
        let kept: BTreeMap<String, Tensor> = lisa.anchors().collect();
        let mut other = Lisa { anchor: BTreeMap::new(), ..lisa };
        other.restore(&parameters, |name| Ok(kept[name].clone())).unwrap();
        assert_eq!(term(&other, 3).0, 0.0);
    }
}

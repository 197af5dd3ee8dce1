//! What a run's samples amount to: how large its micro-batches are, and how many there are.

use super::inputs::Inputs;
use crate::config::Settings;
use crate::data::{Example, predicted_labels};
use crate::train::plan::{Plan, Pool};
use anyhow::Result;

/// One micro-batch in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Micro {
    pub tokens: usize,
    pub label_tokens: usize,
    /// Σ T² over its sequences.
    pub squares: usize,
}

/// The steps of one epoch, of the training samples and of a defence's own.
pub struct Workload {
    /// The micro-batches of each step.
    pub steps: Vec<Vec<Micro>>,
    /// Of all samples in memory.
    pub data_tokens: usize,
    /// Of the training samples.
    pub steps_per_epoch: usize,
    pub total_steps: usize,
}

impl Micro {
    fn of<'a>(examples: impl Iterator<Item = &'a Example>) -> Self {
        examples.fold(Self::default(), |sum, example| Self {
            tokens: sum.tokens + example.input_ids.len(),
            label_tokens: sum.label_tokens + predicted_labels(&example.labels),
            squares: sum.squares + example.input_ids.len().pow(2),
        })
    }
}

impl Workload {
    /// # Errors
    /// Samples that the settings cannot make steps of.
    pub fn of(settings: &Settings, inputs: &Inputs) -> Result<Self> {
        let (mut train, mut defence) = inputs.planned(settings)?;
        let mut steps = epoch(&mut train);
        steps.extend(defence.own_samples().map(epoch).unwrap_or_default());
        let sets = [Some(&*inputs.train), inputs.validation.as_ref(), inputs.own.as_deref()];
        let data_tokens = sets.into_iter().flatten().map(|set| set.counts.tokens).sum();
        let Plan { steps_per_epoch, total_steps, .. } = train.plan;
        Ok(Self { steps, data_tokens, steps_per_epoch, total_steps })
    }

    /// Tokens, label tokens and Σ T² of the mean micro-batch, and how many of them a step has.
    pub fn mean(&self) -> ([f64; 3], f64) {
        let (mut sums, mut count) = ([0.0; 3], 0.0);
        for micro in self.steps.iter().flatten() {
            let values = [micro.tokens, micro.label_tokens, micro.squares];
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value as f64);
            count += 1.0;
        }
        (sums.map(|sum| sum / f64::max(count, 1.0)), count / self.steps.len().max(1) as f64)
    }

    /// The largest micro-batch: the maxima of tokens, labels and squares, each on its own.
    pub fn largest(&self) -> Micro {
        self.steps.iter().flatten().fold(Micro::default(), |largest, micro| Micro {
            tokens: largest.tokens.max(micro.tokens),
            label_tokens: largest.label_tokens.max(micro.label_tokens),
            squares: largest.squares.max(micro.squares),
        })
    }
}

/// The micro-batches of one epoch's steps.
fn epoch(pool: &mut Pool) -> Vec<Vec<Micro>> {
    let examples = &pool.set.examples;
    (0..pool.plan.steps_per_epoch)
        .map(|step| {
            let micro_batches = pool.plan.micro_batches(step);
            micro_batches.into_iter().map(|samples| Micro::of(samples.into_iter().map(|i| &examples[i]))).collect()
        })
        .collect()
}

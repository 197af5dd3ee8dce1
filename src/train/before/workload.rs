//! What a run's samples amount to: how large its micro-batches are, and how many there are.

use super::inputs::Inputs;
use crate::config::Settings;
use crate::data::Dataset;
use crate::ops::delta_rule::Padded;
use crate::train::plan::{Plan, Pool};
use anyhow::Result;

/// One micro-batch in numbers, or several.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Micro {
    pub tokens: usize,
    pub label_tokens: usize,
    /// Σ T² over its sequences.
    pub squares: usize,
    /// What gated DeltaNets make of its sequences on a GPU.
    pub padded: Padded,
}

impl Micro {
    /// `lengths`: the tokens of each sequence.
    pub fn new(lengths: &[usize], label_tokens: usize) -> Self {
        let squares = lengths.iter().map(|length| length.pow(2)).sum();
        Self { tokens: lengths.iter().sum(), label_tokens, squares, padded: Padded::of(lengths) }
    }

    fn of(set: &Dataset, samples: &[usize]) -> Self {
        let entries = || samples.iter().map(|&sample| set.entry(sample));
        let lengths: Vec<usize> = entries().map(|entry| entry.tokens as usize).collect();
        Self::new(&lengths, entries().map(|entry| entry.label_tokens as usize).sum())
    }

    /// The maxima over all samples taken so many at a time.
    fn largest_in_order(set: &Dataset, batch_size: usize) -> Self {
        let numbers: Vec<usize> = (0..set.len()).collect();
        let batches = numbers.chunks(batch_size.max(1)).map(|samples| Self::of(set, samples));
        batches.fold(Self::default(), |largest, micro| largest.with(micro, usize::max))
    }

    /// Number by number.
    pub fn with(self, other: Self, combine: impl Fn(usize, usize) -> usize) -> Self {
        let (own, others) = (self.padded, other.padded);
        Self {
            tokens: combine(self.tokens, other.tokens),
            label_tokens: combine(self.label_tokens, other.label_tokens),
            squares: combine(self.squares, other.squares),
            padded: Padded {
                groups: combine(own.groups, others.groups),
                chunks: combine(own.chunks, others.chunks),
                places: combine(own.places, others.places),
                most_places: combine(own.most_places, others.most_places),
            },
        }
    }
}

/// What steps go through.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Passes {
    /// The sums over all micro-batches.
    pub sum: Micro,
    /// How many there are, in how many steps.
    pub micro_batches: usize,
    pub steps: usize,
}

/// The micro-batch of mean size.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mean {
    pub tokens: f64,
    pub label_tokens: f64,
    /// Σ T² over its sequences.
    pub squares: f64,
    /// As in [`Padded`].
    pub groups: f64,
    pub chunks: f64,
    pub places: f64,
}

/// One epoch of the training samples and of a defence's own.
pub struct Workload {
    /// The maxima over all micro-batches, of each number on its own.
    pub largest: Micro,
    pub passes: Passes,
    /// The batches of its own that a defence adds to each step, if it does.
    pub extra: Passes,
    /// A defence's own samples.
    pub own_samples: usize,
    /// The largest batch of them in their order, if a defence watches what they give its linears.
    pub watched: Micro,
    /// Bytes that all samples take in memory.
    pub data_bytes: usize,
    /// Of the training samples.
    pub steps_per_epoch: usize,
    pub total_steps: usize,
}

impl Workload {
    /// A step of one micro-batch, and nothing else.
    #[cfg(test)]
    pub fn of_one_step(micro: Micro) -> Self {
        Self {
            largest: micro,
            passes: Passes { sum: micro, micro_batches: 1, steps: 1 },
            extra: Passes::default(),
            own_samples: 0,
            watched: Micro::default(),
            data_bytes: 0,
            steps_per_epoch: 1,
            total_steps: 1,
        }
    }

    /// # Errors
    /// Samples that the settings cannot make steps of.
    pub fn of(settings: &Settings, inputs: &Inputs) -> Result<Self> {
        let (mut train, mut defence) = inputs.planned(settings)?;
        let sets = [Some(&*inputs.train), inputs.validation.as_ref(), inputs.own.as_deref()];
        let data_bytes = sets.into_iter().flatten().map(Dataset::resident_bytes).sum();
        let Plan { steps_per_epoch, total_steps, .. } = train.plan;
        let own_samples = inputs.own.as_ref().map_or(0, |own| own.len());
        let watched = inputs.own.as_deref().filter(|_| defence.needs().input_rank > 0);
        let watched = watched.map_or(Micro::default(), |own| Micro::largest_in_order(own, settings.defence.batch_size));
        let (mut largest, mut passes, mut extra) = (Micro::default(), Passes::default(), Passes::default());
        passes.add_epoch(&mut train, &mut largest);
        let adds = defence.needs().extra.is_some();
        if let Some(own) = defence.own_samples() {
            if adds { &mut extra } else { &mut passes }.add_epoch(own, &mut largest);
        }
        Ok(Self { largest, passes, extra, own_samples, watched, data_bytes, steps_per_epoch, total_steps })
    }
}

impl Passes {
    /// The mean micro-batch, and how many of them a step has.
    pub fn mean(&self) -> (Mean, f64) {
        let Micro { tokens, label_tokens, squares, padded } = self.sum;
        let mean = |sum: usize| sum as f64 / self.micro_batches.max(1) as f64;
        let mean = Mean {
            tokens: mean(tokens),
            label_tokens: mean(label_tokens),
            squares: mean(squares),
            groups: mean(padded.groups),
            chunks: mean(padded.chunks),
            places: mean(padded.places),
        };
        (mean, self.micro_batches as f64 / self.steps.max(1) as f64)
    }

    /// Adds an epoch of `pool`; `largest`: the maxima so far.
    fn add_epoch(&mut self, pool: &mut Pool, largest: &mut Micro) {
        for step in 0..pool.plan.steps_per_epoch {
            for samples in pool.plan.micro_batches(step) {
                let micro = Micro::of(&pool.set, &samples);
                *largest = largest.with(micro, usize::max);
                self.sum = self.sum.with(micro, |sum, own| sum + own);
                self.micro_batches += 1;
            }
        }
        self.steps += pool.plan.steps_per_epoch;
    }
}

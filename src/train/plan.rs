//! Which samples go into which optimizer step: a pure function of the step, so that any step can be reproduced.

use super::options::TrainOptions;
use crate::data::{Batch, DataOptions, Dataset, epoch_order, pack};
use crate::ensure_valid;
use crate::report::State;
use anyhow::Result;
use std::sync::Arc;

/// Samples, and which of them go into which step.
pub struct Pool {
    pub set: Arc<Dataset>,
    pub plan: Plan,
}

/// What one step trains on.
pub struct StepSamples {
    /// The kind of step, if a defence has several.
    pub state: Option<State>,
    set: Arc<Dataset>,
    /// The numbers of the samples of each micro-batch.
    micro_batches: Vec<Vec<usize>>,
}

impl Pool {
    /// # Errors
    /// As [`Plan::new`].
    pub fn new(set: Arc<Dataset>, train: &TrainOptions, data: &DataOptions) -> Result<Self> {
        let plan = Plan::new(set.lengths(), train, data)?;
        Ok(Self { set, plan })
    }

    /// What step number `step` (from 0) trains on.
    pub fn samples(&mut self, step: usize, state: Option<State>) -> StepSamples {
        StepSamples { state, set: Arc::clone(&self.set), micro_batches: self.plan.micro_batches(step) }
    }
}

impl StepSamples {
    /// The micro-batches.
    ///
    /// # Errors
    /// The file that holds the samples cannot be read.
    pub fn batches(&self) -> Result<Vec<Batch>> {
        self.micro_batches.iter().map(|samples| self.set.batch(samples)).collect()
    }

    /// Where the samples of one micro-batch are, as `FILE:line`; if it is `None`, those of all.
    pub fn origins(&self, micro_batch: Option<usize>) -> Vec<String> {
        let wanted = micro_batch.map_or(&self.micro_batches[..], |micro| &self.micro_batches[micro..=micro]);
        wanted.iter().flatten().map(|&sample| self.set.origin(sample)).collect()
    }
}

/// The steps of a run.
pub struct Plan {
    /// With packing, the rows of several samples that batches are made of in place of single samples.
    rows: Option<Vec<Vec<usize>>>,
    /// Of rows, or of samples.
    count: usize,
    batch_size: usize,
    accumulation: usize,
    micro_batches_per_epoch: usize,
    seed: u64,
    shuffle: bool,
    pub steps_per_epoch: usize,
    pub total_steps: usize,
    /// The order of the epoch that was last asked for.
    current: (u64, Vec<usize>),
}

impl Plan {
    /// `lengths`: tokens of each sample.
    ///
    /// # Errors
    /// No full batch if partial ones are dropped.
    pub fn new(lengths: impl Iterator<Item = usize>, train: &TrainOptions, data: &DataOptions) -> Result<Self> {
        let batch_size = train.batch_size;
        let (rows, count) = if data.packing {
            let rows = pack(&lengths.collect::<Vec<_>>(), data.max_length);
            let count = rows.len();
            (Some(rows), count)
        } else {
            (None, lengths.count())
        };
        let micro_batches_per_epoch = if data.drop_last { count / batch_size } else { count.div_ceil(batch_size) };
        ensure_valid!(
            micro_batches_per_epoch > 0,
            "data.drop_last leaves no batch: {count} {} do not fill one of train.batch_size = {batch_size}",
            if data.packing { "packed rows" } else { "samples" }
        );
        // The last step of an epoch may accumulate fewer micro-batches; steps do not reach across epochs.
        let steps_per_epoch = micro_batches_per_epoch.div_ceil(train.gradient_accumulation);
        let by_epochs = ((steps_per_epoch as f64 * train.epochs).ceil() as usize).max(1);
        Ok(Self {
            rows,
            count,
            batch_size,
            accumulation: train.gradient_accumulation,
            micro_batches_per_epoch,
            seed: train.seed,
            shuffle: data.shuffle,
            steps_per_epoch,
            total_steps: train.max_steps.unwrap_or(by_epochs),
            current: (0, epoch_order(count, train.seed, 0, data.shuffle)),
        })
    }

    /// The sample numbers of each micro-batch of a step, counted from 0.
    pub fn micro_batches(&mut self, step: usize) -> Vec<Vec<usize>> {
        let epoch = (step / self.steps_per_epoch) as u64;
        if self.current.0 != epoch {
            // The earlier one goes first: both might not fit.
            self.current = (epoch, vec![]);
            self.current.1 = epoch_order(self.count, self.seed, epoch, self.shuffle);
        }
        let first = step % self.steps_per_epoch * self.accumulation;
        let last = (first + self.accumulation).min(self.micro_batches_per_epoch);
        let order = &self.current.1;
        let units = |micro: usize| &order[micro * self.batch_size..((micro + 1) * self.batch_size).min(order.len())];
        let samples = |micro: usize| match &self.rows {
            Some(rows) => units(micro).iter().flat_map(|&row| rows[row].clone()).collect(),
            None => units(micro).to_vec(),
        };
        (first..last).map(samples).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(samples: usize, epochs: f64, drop_last: bool) -> Plan {
        let train = TrainOptions { batch_size: 2, gradient_accumulation: 2, epochs, ..Default::default() };
        Plan::new(std::iter::repeat_n(10, samples), &train, &DataOptions { drop_last, ..Default::default() }).unwrap()
    }

    #[test]
    fn packed_rows_take_the_place_of_samples() {
        let train = TrainOptions { batch_size: 2, ..Default::default() };
        let data = DataOptions { packing: true, max_length: 20, ..Default::default() };
        let mut plan = Plan::new([10, 20, 5, 10, 5, 10].into_iter(), &train, &data).unwrap();
        assert_eq!(plan.steps_per_epoch, 2);
        let mut seen: Vec<usize> = (0..2).flat_map(|step| plan.micro_batches(step)).flatten().collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn an_epoch_visits_every_sample_once_and_partial_batches_count() {
        let mut plan = plan(7, 2.0, false);
        assert_eq!((plan.steps_per_epoch, plan.total_steps), (2, 4));
        for epoch in 0..2 {
            let mut seen: Vec<usize> = (0..2).flat_map(|step| plan.micro_batches(epoch * 2 + step)).flatten().collect();
            seen.sort_unstable();
            assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
        }
        let sizes: Vec<usize> = plan.micro_batches(1).iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 1]);
    }

    #[test]
    fn drop_last_and_fractions_of_an_epoch() {
        let mut plan = plan(7, 0.5, true);
        assert_eq!((plan.steps_per_epoch, plan.total_steps), (2, 1));
        assert_eq!(plan.micro_batches(1).iter().map(Vec::len).collect::<Vec<_>>(), [2]);
    }
}

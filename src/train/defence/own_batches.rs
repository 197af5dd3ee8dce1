//! A defence's own samples: which file, and small batches of them, one for each step.

use super::contract::{OwnSamples, Records};
use super::options::DefenceOptions;
use crate::config::Settings;
use crate::data::{Batch, DataOptions, Dataset};
use crate::train::options::TrainOptions;
use crate::train::plan::Pool;
use anyhow::Result;
use std::sync::Arc;

/// The setting that names safety samples.
pub const ALIGNMENT_DATA: &str = "defence.alignment_data";

/// The safety samples that the options name.
pub fn alignment_samples(options: &DefenceOptions) -> Option<OwnSamples> {
    let (records, name, key) = (Records::Samples, "alignment", ALIGNMENT_DATA);
    options.alignment_data.clone().map(|file| OwnSamples { records, name, key, file })
}

/// The setting that names prompts.
pub const PROMPTS: &str = "defence.prompts";

/// The prompts that the options name.
pub fn prompts(options: &DefenceOptions) -> Option<OwnSamples> {
    let (records, name, key) = (Records::Prompts, "prompts", PROMPTS);
    options.prompts.clone().map(|file| OwnSamples { records, name, key, file })
}

/// A batch for each step, as a function of the seed and the step's number.
pub struct OwnBatches {
    pub pool: Pool,
}

impl OwnBatches {
    /// Batches of `defence.batch_size` samples, in a new order in each round; of all samples if there are fewer. What a
    /// round leaves over is left out of it: a batch of a few would weigh each of them more.
    pub fn new(own: Arc<Dataset>, settings: &Settings) -> Result<Self> {
        let batch_size = settings.defence.batch_size;
        let train = TrainOptions { batch_size, gradient_accumulation: 1, ..settings.train.clone() };
        let drop_last = own.len() >= batch_size;
        let data = DataOptions { packing: false, shuffle: true, drop_last, ..settings.data.clone() };
        Ok(Self { pool: Pool::new(own, &train, &data)? })
    }

    /// The batch of step number `step` (from 0), and the numbers of its samples.
    pub fn at(&mut self, step: usize) -> Result<(Vec<usize>, Batch)> {
        let samples = self.pool.plan.micro_batches(step).concat();
        let batch = self.pool.set.batch(&samples)?;
        Ok((samples, batch))
    }
}

//! Small batches of a defence's own samples, one for each step: a function of the seed and the step's number.

use crate::config::Settings;
use crate::data::{Batch, DataOptions, Dataset};
use crate::train::options::TrainOptions;
use crate::train::plan::Pool;
use anyhow::Result;
use std::sync::Arc;

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

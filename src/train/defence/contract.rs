//! What a defence can change in a run, and what it needs for that.

use crate::config::Settings;
use crate::data::{Batch, Dataset};
use crate::model::{Decoder, Gradients, Parameters};
use crate::ops::scalar::Scalar;
use crate::train::plan::{Pool, StepSamples};
use anyhow::Result;
use candle_core::Tensor;
use std::sync::Arc;

/// What a defence changes in a run; by default, nothing.
pub trait Defence: Send + Sync {
    /// The files, memory and time that it needs.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Gets it ready for a run of `total_steps`. `own`: the samples that it [needs](Defence::needs).
    ///
    /// # Errors
    /// Samples or steps that it cannot use.
    fn prepare(&mut self, _own: Option<Arc<Dataset>>, _settings: &Settings, _total_steps: usize) -> Result<()> {
        Ok(())
    }

    /// Its own samples, once it has them.
    fn own_samples(&mut self) -> Option<&mut Pool> {
        None
    }

    /// What step number `step` (from 0) trains on; `train`: the samples of the task.
    ///
    /// # Errors
    /// It needs samples of its own and has none.
    fn samples(&mut self, step: usize, train: &mut Pool) -> Result<StepSamples> {
        Ok(train.samples(step, None))
    }

    /// Called before each step is computed.
    fn begin(&mut self, _step: usize, _parameters: &Parameters) -> Result<()> {
        Ok(())
    }

    /// What replaces each label token's cross-entropy in a micro-batch.
    fn objective(&self, _model: &mut Decoder, _batch: &Batch) -> Result<Option<TokenObjective<'_>>> {
        Ok(None)
    }

    /// Adds the gradients of its own term of the loss to those of the step, which are summed over the ranks: each rank
    /// computes all of the term. Returns the term's values, whose sum it is; `None` if there is no such term.
    fn add_to(
        &mut self,
        _step: usize,
        _model: &mut Decoder,
        _gradients: &mut Gradients,
    ) -> Result<Option<Vec<Scalar>>> {
        Ok(None)
    }

    /// What a checkpoint must hold for it, by names that no optimizer tensor has.
    fn tensors(&self) -> Vec<(String, Tensor)> {
        vec![]
    }

    /// Restores what `read` returns for the names of [`Defence::tensors`].
    fn restore(&mut self, _parameters: &Parameters, _read: &dyn Fn(&str) -> Result<Tensor>) -> Result<()> {
        Ok(())
    }
}

/// Maps a label token's number in its micro-batch and its cross-entropy to its objective and that objective's slope.
pub type TokenObjective<'a> = Box<dyn Fn(usize, f64) -> (f64, f64) + 'a>;

/// The files, memory and time that a defence needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Needs {
    /// Samples of its own, in the format of `data.train`.
    pub samples: Option<OwnSamples>,
    /// Copies of all that trains, in f32: held in memory and in every checkpoint.
    pub copies: usize,
    /// Forward passes without the adapter in each step.
    pub reference_passes: usize,
}

/// A file of samples that a defence needs.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnSamples {
    /// Their name in `run.json` and in messages.
    pub name: &'static str,
    /// The setting that names the file.
    pub key: &'static str,
    /// A path or a hub id.
    pub file: String,
}

/// Plain training.
pub struct Undefended;

impl Defence for Undefended {}

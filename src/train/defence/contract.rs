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

    /// Takes what it needs of the model as it is before the first step, also where a checkpoint will change it next: what
    /// trains has not moved yet, and the adapter may be one to continue.
    fn start(&mut self, _model: &mut Decoder) -> Result<()> {
        Ok(())
    }

    /// Its own samples, once it has them, and which of them go into which step.
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

    /// Called after each step that was taken: what trains has just moved.
    fn taken(&mut self, _parameters: &Parameters) -> Result<()> {
        Ok(())
    }

    /// Exchanges what trains for what is measured and exported in its place, where that is something else; once more, and all is as
    /// before.
    fn exchange(&mut self, _parameters: &Parameters) -> Result<()> {
        Ok(())
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
    pub samples: Option<OwnSamples>,
    /// Copies of all that trains, in f32: held in memory and in every checkpoint.
    pub copies: usize,
    /// Forward passes without the adapter over the samples of each step.
    pub reference_passes: usize,
    /// Columns in f32 that are held of every adapted module's d_in inputs, at most; 0 if none are.
    pub input_rank: usize,
    /// What it computes in each step on a batch of its own samples; without this they take the place of the task's.
    pub extra: Option<ExtraBatch>,
}

/// A batch of a defence's own samples, which goes forward and backward in each step besides those of the task.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ExtraBatch {
    /// Forward passes over it without the adapter.
    pub reference_passes: usize,
    /// Whether a vector of hidden_size in f32 is held for each of its own samples.
    pub holds_states: bool,
    /// Whether its gradients are held beside those of the step.
    pub own_gradients: bool,
}

/// How a defence's own samples are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Records {
    /// In the format of `data.train`.
    Samples,
    /// As prompts to answer; an answer in the record is left out.
    Prompts,
}

/// A file of samples that a defence needs.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnSamples {
    pub records: Records,
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

//! The divergence from the aligned model on safety samples, as a term of the loss.
//!
//! With p_t and q_t the distributions of the next token before the t-th label token of a sample, of the model without its
//! adapter and of the model in training, teacher-forced, and T label tokens in the step's small batch:
//!
//! ```text
//! term       (ρ / T) Σ_t KL(p_t ‖ q_t)
//! gradient   (ρ / T) (q_t − p_t)  by the logits, and from there back through head and blocks
//! ```
//!
//! Unlike Lisa's or SafeInstr's cross-entropy it is 0 where nothing has moved, and holds the whole distribution rather than
//! the sample's own token. p comes from a pass without the adapter in the same step: for full tuning there is no such model,
//! and keeping all p would take a vector of the vocabulary's size for each label token. The pass is without dropout, as
//! that of p is.

use super::contract::{Defence, ExtraBatch, Needs};
use super::options::DefenceOptions;
use super::own_batches::{ALIGNMENT_DATA, OwnBatches, alignment_samples};
use crate::config::Settings;
use crate::data::Dataset;
use crate::model::{Decoder, Gradients, Sequences, Through};
use crate::ops::scalar::Scalar;
use crate::train::plan::Pool;
use anyhow::{Context, Result};
use std::sync::Arc;

pub struct Kl {
    options: DefenceOptions,
    checkpointing: bool,
    /// The safety samples, once loaded.
    alignment: Option<OwnBatches>,
}

impl Kl {
    pub fn new(options: &DefenceOptions) -> Self {
        Self { options: options.clone(), checkpointing: false, alignment: None }
    }

    /// (1 / T) Σ KL(p ‖ q) over the batch of a step; adds the gradients of `factor` times that.
    pub fn mean(&mut self, step: usize, model: &mut Decoder, factor: f64, gradients: &mut Gradients) -> Result<Scalar> {
        let alignment = self.alignment.as_mut().context("no samples of defence.alignment_data")?;
        let (_, batch) = alignment.at(step)?;
        let tokens = batch.label_tokens() as f64;
        let through = Through { checkpointing: self.checkpointing, dropout_key: None };
        let sum = model.divergence_and_gradients(Sequences::from(&batch), factor / tokens, through, gradients)?;
        Ok(sum.times(1.0 / tokens))
    }
}

impl Defence for Kl {
    fn needs(&self) -> Needs {
        let extra = ExtraBatch { reference_passes: 1, ..ExtraBatch::default() };
        Needs { samples: alignment_samples(&self.options), extra: Some(extra), ..Needs::default() }
    }

    fn prepare(&mut self, own: Option<Arc<Dataset>>, settings: &Settings, _total_steps: usize) -> Result<()> {
        self.checkpointing = settings.train.gradient_checkpointing;
        self.alignment = own.map(|own| OwnBatches::new(own, settings)).transpose().context(ALIGNMENT_DATA)?;
        Ok(())
    }

    fn own_samples(&mut self) -> Option<&mut Pool> {
        self.alignment.as_mut().map(|alignment| &mut alignment.pool)
    }

    fn add_to(&mut self, step: usize, model: &mut Decoder, gradients: &mut Gradients) -> Result<Option<Vec<Scalar>>> {
        let rho = self.options.rho;
        Ok(Some(vec![self.mean(step, model, rho, gradients)?.times(rho)]))
    }
}

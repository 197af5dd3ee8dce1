//! The hidden-state anchor: Safety Bottleneck Regularization (Lu et al., arXiv 2605.05995), with a small batch of the
//! prompts in each step where the released code has all of its few.
//!
//! With h_i the hidden state that enters the head (after the final norm) at the last token of prompt i, where its answer
//! begins, h⁰_i that of the aligned model, H = hidden_size, and n prompts in the step:
//!
//! ```text
//! term       (λ / n) Σ_i ‖h_i − h⁰_i‖² / H
//! gradient   (2 λ / n H) (h_i − h⁰_i)  by h_i, and from there back through the blocks
//! ```
//!
//! h⁰ is computed once before the first step, of the model without its adapter, or in full tuning with the weights that
//! it starts from; nothing of it needs to be in a checkpoint. The pass is without dropout, as h⁰ is: masks would be a
//! distance to the aligned model where the weights have none, and the model is used without them.

use super::contract::{Defence, ExtraBatch, Needs};
use super::options::DefenceOptions;
use super::own_batches::{OwnBatches, PROMPTS, prompts};
use crate::config::Settings;
use crate::data::{Batch, Dataset};
use crate::model::{Decoder, Gradients, Sequences, Through};
use crate::ops::scalar::Scalar;
use crate::ops::sum::square_sum;
use crate::train::plan::Pool;
use anyhow::{Context, Result};
use candle_core::{DType, Tensor};
use std::sync::Arc;

pub struct Anchor {
    options: DefenceOptions,
    checkpointing: bool,
    /// The prompts, once loaded.
    prompts: Option<OwnBatches>,
    /// h⁰ of every prompt, [prompts, hidden_size] in f32, once computed.
    reference: Option<Tensor>,
}

impl Anchor {
    pub fn new(options: &DefenceOptions) -> Self {
        Self { options: options.clone(), checkpointing: false, prompts: None, reference: None }
    }
}

/// The row of each sequence's last token.
fn last_rows(batch: &Batch) -> Vec<u32> {
    let ends = batch.lengths.iter().scan(0, |end, length| {
        *end += length;
        Some(*end)
    });
    ends.map(|end: usize| end.saturating_sub(1) as u32).collect()
}

/// Σ ‖h − h⁰‖² over rows [n, hidden_size], and the gradient of `factor` times that by h, in the type of h; h⁰ in f32.
fn distance(h: &Tensor, reference: &Tensor, factor: f64) -> Result<(Scalar, Tensor)> {
    let moved = (h.to_dtype(DType::F32)? - reference)?;
    Ok((square_sum(&moved)?, (moved * (2.0 * factor))?.to_dtype(h.dtype())?))
}

impl Defence for Anchor {
    fn needs(&self) -> Needs {
        let samples = prompts(&self.options);
        let extra = ExtraBatch { holds_states: true, ..ExtraBatch::default() };
        Needs { samples, extra: Some(extra), ..Needs::default() }
    }

    fn prepare(&mut self, own: Option<Arc<Dataset>>, settings: &Settings, _total_steps: usize) -> Result<()> {
        self.checkpointing = settings.train.gradient_checkpointing;
        self.prompts = own.map(|own| OwnBatches::new(own, settings)).transpose().context(PROMPTS)?;
        Ok(())
    }

    fn start(&mut self, model: &mut Decoder) -> Result<()> {
        let set = &self.prompts.as_ref().context("no prompts of defence.prompts")?.pool.set;
        let numbers: Vec<usize> = (0..set.len()).collect();
        let states = numbers.chunks(self.options.batch_size).map(|numbers| {
            let batch = set.batch(numbers)?;
            let states =
                model.without_adapters(|model| model.features(&batch.input_ids, &batch.lengths, last_rows(&batch)));
            Ok(states?.to_dtype(DType::F32)?)
        });
        self.reference = Some(Tensor::cat(&states.collect::<Result<Vec<_>>>()?, 0)?);
        Ok(())
    }

    fn own_samples(&mut self) -> Option<&mut Pool> {
        self.prompts.as_mut().map(|prompts| &mut prompts.pool)
    }

    fn add_to(&mut self, step: usize, model: &mut Decoder, gradients: &mut Gradients) -> Result<Option<Vec<Scalar>>> {
        let (numbers, batch) = self.prompts.as_mut().context("no prompts of defence.prompts")?.at(step)?;
        let reference = self.reference.as_ref().context("no hidden states of the aligned model")?;
        let chosen: Vec<u32> = numbers.iter().map(|&number| number as u32).collect();
        let reference = reference.index_select(&Tensor::new(chosen, reference.device())?, 0)?;
        let scale = self.options.weight / reference.elem_count() as f64;
        let through = Through { checkpointing: self.checkpointing, dropout_key: None };
        let function = |h: &Tensor, factor, _: &mut Gradients| distance(h, &reference, factor);
        let rows = last_rows(&batch);
        let sum = model.value_and_gradients(Sequences::from(&batch), rows, scale, through, gradients, function)?;
        Ok(Some(vec![sum.times(scale)]))
    }
}

//! The inputs that some prompts give every adapted layer of the aligned model, before the first step.
//!
//! With x a layer's input on a token, Σ = Σ_tokens x xᵀ over all tokens of all prompts (those of the chat template too), in at most
//! `defence.rank` columns E: Σ ≈ E Eᵀ ([`Sketch`]), and Σ's trace. The model is without its adapter, and nothing of it needs to be in
//! a checkpoint: whoever resumes takes it anew.

use super::contract::Needs;
use super::options::DefenceOptions;
use super::own_batches::prompts;
use crate::data::Dataset;
use crate::method::orthonormal;
use crate::method::spectral::{Factor, Sketch};
use crate::model::{Decoder, Watch};
use anyhow::{Context, Result};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

pub struct PromptInputs {
    options: DefenceOptions,
    /// The prompts, once loaded.
    pub set: Option<Arc<Dataset>>,
}

impl PromptInputs {
    pub fn new(options: &DefenceOptions) -> Self {
        Self { options: options.clone(), set: None }
    }

    pub fn needs(&self) -> Needs {
        Needs { samples: prompts(&self.options), input_rank: self.options.rank, ..Needs::default() }
    }

    /// E and Σ's trace by module.
    pub fn factors(&self, model: &mut Decoder) -> Result<BTreeMap<String, Factor>> {
        let factor = |(module, sketch): (String, Sketch)| {
            let factor = sketch.factor().with_context(|| format!("inputs of {module}"))?;
            Ok((module, factor))
        };
        self.sketches(model)?.into_iter().map(factor).collect()
    }

    /// The sketch of every adapted module's inputs over all prompts.
    fn sketches(&self, model: &mut Decoder) -> Result<BTreeMap<String, Sketch>> {
        let set = self.set.as_ref().context("no prompts of defence.prompts")?;
        let (sketches, rank) = (Arc::new(Mutex::new(BTreeMap::new())), self.options.rank);
        let shared = Arc::clone(&sketches);
        let watch: Watch = Arc::new(move |module: &str, x: &Tensor| {
            let mut sketches = shared.lock().map_err(|_| anyhow::anyhow!("a pass over the prompts failed"))?;
            if !sketches.contains_key(module) {
                let d_in = x.dim(1)?;
                let test = orthonormal(d_in, rank.min(d_in), &format!("activations {module}"))?;
                sketches.insert(module.to_string(), Sketch::new(&test, x.device())?);
            }
            sketches.get_mut(module).context("a sketch")?.add(x)
        });
        let numbers: Vec<usize> = (0..set.len()).collect();
        model.watched(&watch, |model| {
            numbers.chunks(self.options.batch_size).try_for_each(|numbers| {
                let batch = set.batch(numbers)?;
                let last = batch.input_ids.len().saturating_sub(1) as u32;
                model.without_adapters(|model| model.features(&batch.input_ids, &batch.lengths, vec![last]))?;
                anyhow::Ok(())
            })
        })?;
        drop(watch);
        let sketches = Arc::into_inner(sketches).and_then(|sketches| sketches.into_inner().ok());
        sketches.context("a pass over the prompts failed")
    }
}

//! The activation-weighted penalty: what an update does to the inputs that safety prompts give its layer.
//!
//! What a module's update ΔW does to its input x on a prompt is ΔW x. With Σ_x the mean of x xᵀ over the prompts' tokens in the
//! aligned model and ΔW = s B A as it acts,
//!
//! ```text
//! term  λ Σ_modules (d_in / tr Σ_x) tr(ΔW Σ_x ΔWᵀ)        λ = defence.weight
//! ```
//!
//! which is λ ‖ΔW‖² for inputs without a preferred direction. It is the mean of ‖ΔW x‖² over the tokens, in units of ‖x‖² / d_in.
//! Σ_x is taken in `defence.rank` columns E ([`Sketch`]): Σ_x ≈ E Eᵀ, and the term and its gradients are those of [`input`] with
//! E for R. It is computed once before the first step, of the model without its adapter, and does not change; nothing of it needs
//! to be in a checkpoint.

use super::contract::{Defence, Needs};
use super::options::DefenceOptions;
use super::own_batches::prompts;
use crate::config::Settings;
use crate::console::log;
use crate::data::Dataset;
use crate::method::input::{self, Input};
use crate::method::orthonormal;
use crate::method::spectral::{Factor, Sketch};
use crate::model::{Decoder, Gradients, Watch};
use crate::names::LoraMatrix;
use crate::ops::scalar::Scalar;
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

pub struct Activations {
    options: DefenceOptions,
    /// The prompts, once loaded.
    prompts: Option<Arc<Dataset>>,
    /// (d_in / tr Σ_x) Σ_x by module, once computed.
    inputs: BTreeMap<String, Input>,
}

impl Activations {
    pub fn new(options: &DefenceOptions) -> Self {
        Self { options: options.clone(), prompts: None, inputs: BTreeMap::new() }
    }

    /// The sketch of every adapted module's inputs over all prompts.
    fn sketches(&self, model: &mut Decoder) -> Result<BTreeMap<String, Sketch>> {
        let set = self.prompts.as_ref().context("no prompts of defence.prompts")?;
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

impl Defence for Activations {
    fn needs(&self) -> Needs {
        let samples = prompts(&self.options);
        Needs { samples, input_rank: self.options.rank, ..Needs::default() }
    }

    fn prepare(&mut self, own: Option<Arc<Dataset>>, _settings: &Settings, _total_steps: usize) -> Result<()> {
        self.prompts = own;
        Ok(())
    }

    fn start(&mut self, model: &mut Decoder) -> Result<()> {
        let (mut kept, mut all) = (0.0, 0.0);
        for (module, sketch) in self.sketches(model)? {
            let Factor { columns, trace } = sketch.factor().with_context(|| format!("inputs of {module}"))?;
            let held: f64 = columns.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar()?;
            // Inputs that are all 0 are not moved by anything.
            let weight = if trace > 0.0 { columns.dim(0)? as f64 / trace } else { 0.0 };
            (kept, all) = (kept + held * weight, all + trace * weight);
            self.inputs.insert(module, Input::weighted(columns.to_device(model.device())?, weight)?);
        }
        let (share, modules) = (kept / all.max(f64::MIN_POSITIVE), self.inputs.len());
        let text = format!("activations: {:.1} % of the squared inputs of {modules} modules are kept", share * 100.0);
        log::info(&text, json!({"modules": modules, "kept": share}));
        Ok(())
    }

    fn add_to(&mut self, _step: usize, model: &mut Decoder, gradients: &mut Gradients) -> Result<Option<Vec<Scalar>>> {
        let mut values = Vec::with_capacity(self.inputs.len());
        for (module, lora) in model.adapters() {
            let input = self.inputs.get(module).with_context(|| format!("no inputs of {module} were seen"))?;
            let weight = self.options.weight * lora.scale * lora.scale;
            let term = input::lora(Some(input), &lora.a, &lora.b, 0.0, weight)?;
            values.push(term.value);
            gradients.add(&LoraMatrix::A.name(module), term.grad_a)?;
            gradients.add(&LoraMatrix::B.name(module), term.grad_b)?;
        }
        Ok(Some(values))
    }
}

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
//! Σ_x is taken in `defence.rank` columns E ([`PromptInputs`]): Σ_x ≈ E Eᵀ, and the term and its gradients are those of [`input`] with
//! E for R. It is computed once before the first step, of the model without its adapter, and does not change; nothing of it needs
//! to be in a checkpoint.

use super::contract::{Defence, Needs};
use super::options::DefenceOptions;
use super::prompt_inputs::PromptInputs;
use crate::config::Settings;
use crate::console::log;
use crate::data::Dataset;
use crate::method::input::{self, Input};
use crate::method::spectral::Factor;
use crate::model::{Decoder, Gradients};
use crate::names::LoraMatrix;
use crate::ops::scalar::Scalar;
use anyhow::{Context, Result};
use candle_core::{DType, Device};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

pub struct Activations {
    weight: f64,
    prompts: PromptInputs,
    /// (d_in / tr Σ_x) Σ_x by module, once computed.
    inputs: BTreeMap<String, Input>,
}

impl Activations {
    pub fn new(options: &DefenceOptions) -> Self {
        Self { weight: options.weight, prompts: PromptInputs::new(options), inputs: BTreeMap::new() }
    }
}

impl Defence for Activations {
    fn needs(&self) -> Needs {
        self.prompts.needs()
    }

    fn prepare(&mut self, own: Option<Arc<Dataset>>, _settings: &Settings, _total_steps: usize) -> Result<()> {
        self.prompts.set = own;
        Ok(())
    }

    fn start(&mut self, model: &mut Decoder) -> Result<()> {
        let (mut kept, mut all) = (0.0, 0.0);
        for (module, Factor { columns, trace }) in self.prompts.factors(model)? {
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
            let weight = self.weight * lora.scale * lora.scale;
            let term = input::lora(Some(input), &lora.a, &lora.b, 0.0, weight)?;
            values.push(term.value);
            gradients.add(&LoraMatrix::A.name(module), term.grad_a)?;
            gradients.add(&LoraMatrix::B.name(module), term.grad_b)?;
        }
        Ok(Some(values))
    }
}

//! Updates that do nothing to the inputs of some prompts: the null-space part of GuardSpace (Zhang et al., arXiv 2510.14301).
//!
//! With Σ the sum of x xᵀ over the inputs x that the prompts give a layer of the aligned model ([`PromptInputs`]), and Q: [d_in, k] its
//! leading eigenvectors, as few as hold the share `defence.energy` of its trace, of at most `defence.rank`:
//!
//! ```text
//! P = I − Q Qᵀ        at the start  A ← A P        in each step  ∂A ← ∂A P        after it  A ← A P
//! ```
//!
//! so that ΔW Q = s B A Q = 0 throughout. AdamW divides by each element's own root mean square, which leaves the space, so that A is
//! projected too; with the gradient's projection it is the same as training a free A that acts as A P. Where Q holds all
//! of the prompts' inputs in every adapted layer, the model's outputs on the prompts do not change at all.
//!
//! The penalty's gradient is part of ∂A. What the paper has besides, initial values of the adapter from components of W that matter
//! least to the prompts, with W changed to match, is left out: here B is 0 at the start and W stays as it is.

use super::contract::{Defence, Needs};
use super::options::DefenceOptions;
use super::prompt_inputs::PromptInputs;
use crate::config::Settings;
use crate::console::log;
use crate::data::Dataset;
use crate::error::listing;
use crate::invalid;
use crate::model::{Decoder, Gradients, Parameters};
use crate::names::LoraMatrix;
use crate::ops::scalar::Scalar;
use anyhow::{Context, Result};
use candle_core::Tensor;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

pub struct NullSpace {
    energy: f64,
    prompts: PromptInputs,
    /// Q by the name of the A that it holds for, once computed.
    closed: BTreeMap<String, Tensor>,
}

impl NullSpace {
    pub fn new(options: &DefenceOptions) -> Self {
        Self { energy: options.energy, prompts: PromptInputs::new(options), closed: BTreeMap::new() }
    }

    /// A ← A P
    fn project(&self, parameters: &Parameters) -> Result<()> {
        for (name, q) in &self.closed {
            let a = parameters.get(name).with_context(|| format!("no parameter {name}"))?;
            a.set(&projected(a.as_tensor(), q)?)?;
        }
        Ok(())
    }
}

/// x P for x: [r, d_in]
fn projected(x: &Tensor, q: &Tensor) -> Result<Tensor> {
    Ok((x - x.matmul(q)?.matmul(&q.t()?)?)?.detach())
}

impl Defence for NullSpace {
    fn needs(&self) -> Needs {
        self.prompts.needs()
    }

    fn prepare(&mut self, own: Option<Arc<Dataset>>, _settings: &Settings, _total_steps: usize) -> Result<()> {
        self.prompts.set = own;
        Ok(())
    }

    fn start(&mut self, model: &mut Decoder) -> Result<()> {
        let (mut full, mut closed, mut all, mut least) = (vec![], 0, 0, 1f64);
        for (module, factor) in self.prompts.factors(model)? {
            let (q, held) = factor.leading(self.energy).with_context(|| format!("inputs of {module}"))?;
            let (d_in, k) = q.dims2()?;
            if k == d_in {
                full.push(module.clone());
            }
            (closed, all, least) = (closed + k, all + d_in, least.min(held));
            // Inputs that are all 0 close nothing.
            if k > 0 {
                self.closed.insert(LoraMatrix::A.name(&module), q.to_device(model.device())?);
            }
        }
        if !full.is_empty() {
            return Err(invalid!(
                "the inputs of defence.prompts take every direction of {}, so that nothing of it could train; lower defence.energy = {} or \
                 defence.rank",
                listing(&full, 4),
                self.energy
            ));
        }
        let text = format!(
            "null_space: {closed} of {all} input directions are closed, at least {:.1} % of every layer's squared inputs on the prompts",
            least * 100.0
        );
        log::info(&text, json!({"closed": closed, "directions": all, "held": least}));
        self.project(model.parameters())
    }

    fn add_to(&mut self, _step: usize, _model: &mut Decoder, gradients: &mut Gradients) -> Result<Option<Vec<Scalar>>> {
        for (name, q) in &self.closed {
            let gradient = projected(gradients.get(name)?, q)?;
            gradients.set(name, gradient);
        }
        Ok(None)
    }

    fn taken(&mut self, parameters: &Parameters) -> Result<()> {
        self.project(parameters)
    }
}

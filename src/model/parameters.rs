//! Trained tensors and their gradients, keyed by Hugging Face tensor name.

use crate::ops::sum::{add, square_sum};
use anyhow::{Context, Result};
use candle_core::{DType, Tensor, Var};
use std::collections::BTreeMap;

/// Trained tensors by name, such as `model.layers.0.self_attn.q_proj.lora_A.weight`; f32. The model reads the same
/// storage, so setting a [`Var`] moves the model.
pub type Parameters = BTreeMap<String, Var>;

/// Gradients by the name of their parameter, summed over everything that was added.
#[derive(Default)]
pub struct Gradients(BTreeMap<String, Tensor>);

impl Gradients {
    /// Adds a gradient to the sum under `name`, in f32.
    pub fn add(&mut self, name: &str, gradient: Tensor) -> Result<()> {
        let gradient = gradient.to_dtype(DType::F32)?;
        match self.0.get_mut(name) {
            Some(sum) => *sum = add(sum, &gradient)?,
            None => {
                self.0.insert(name.to_string(), gradient);
            }
        }
        Ok(())
    }

    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.0.get(name).with_context(|| format!("no gradient reached {name}"))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, gradient)| (name.as_str(), gradient))
    }

    /// Global L2 norm, summed in f64.
    pub fn norm(&self) -> Result<f64> {
        let mut sum = 0.0;
        for gradient in self.0.values() {
            sum += square_sum(gradient)?;
        }
        Ok(sum.sqrt())
    }
}

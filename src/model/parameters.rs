//! Trained tensors and their gradients, keyed by Hugging Face tensor name.

use crate::ops::scalar::Scalar;
use crate::ops::sum::{add, scaled, square_sum};
use crate::ops::{cast, parameters};
use anyhow::{Context, Result};
use candle_core::{DType, Tensor, Var};
use std::collections::BTreeMap;

/// Trained tensors by name, such as `model.layers.0.self_attn.q_proj.lora_A.weight`; f32. The model reads the same
/// storage, so setting a [`Var`] changes the model.
pub type Parameters = BTreeMap<String, Var>;

/// Gradients by parameter name, summed over everything that was added.
pub struct Gradients {
    sums: BTreeMap<String, Tensor>,
    factor: f64,
}

impl Default for Gradients {
    fn default() -> Self {
        Self { sums: BTreeMap::new(), factor: 1.0 }
    }
}

impl Gradients {
    /// Multiplies whatever is added from now on by `factor`.
    pub fn set_factor(&mut self, factor: f64) {
        self.factor = factor;
    }

    /// Adds a gradient to the sum under `name`, in f32.
    pub fn add(&mut self, name: &str, gradient: Tensor) -> Result<()> {
        let mut gradient = cast(&gradient, DType::F32)?;
        if self.factor != 1.0 {
            gradient = scaled(&gradient, self.factor)?;
        }
        match self.sums.get_mut(name) {
            Some(sum) => *sum = add(sum, &gradient)?,
            None => {
                self.sums.insert(name.to_string(), gradient);
            }
        }
        Ok(())
    }

    /// Replaces the sum under `name` with `gradient`.
    pub fn set(&mut self, name: &str, gradient: Tensor) {
        self.sums.insert(name.to_string(), gradient);
    }

    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.sums.get(name).with_context(|| format!("no gradient reached {name}"))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.sums.iter().map(|(name, gradient)| (name.as_str(), gradient))
    }

    /// The squares of the gradients' L2 norms, or their sum: the global norm is the root of it either way.
    pub fn squares(&self) -> Result<Vec<Scalar>> {
        match parameters::square_sum(&self.sums.values().collect::<Vec<_>>())? {
            Some(sum) => Ok(vec![sum]),
            None => self.sums.values().map(square_sum).collect(),
        }
    }

    /// Global L2 norm, summed in f64.
    pub fn norm(&self) -> Result<f64> {
        let squares = self.squares()?;
        Ok(Scalar::read_all(&squares.iter().collect::<Vec<_>>())?.iter().sum::<f64>().sqrt())
    }
}

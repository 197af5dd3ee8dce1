//! A copy of all that trains, as a defence keeps it and finds it again in a checkpoint.

use crate::model::Parameters;
use crate::ops::owned;
use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use std::collections::BTreeMap;

/// Tensors of the parameters' names and shapes, f32, in memory of their own.
pub struct Copies {
    /// What a tensor is called in a checkpoint, after its parameter's name.
    suffix: &'static str,
    tensors: BTreeMap<String, Tensor>,
}

impl Copies {
    /// None yet.
    pub fn new(suffix: &'static str) -> Self {
        Self { suffix, tensors: BTreeMap::new() }
    }

    /// Copies the parameters as they are now.
    pub fn take(&mut self, parameters: &Parameters) -> Result<()> {
        for (name, parameter) in parameters {
            self.tensors.insert(name.clone(), owned(parameter.as_tensor())?);
        }
        Ok(())
    }

    /// The copy of the parameter `name`.
    pub fn of(&mut self, name: &str) -> Result<&mut Tensor> {
        let suffix = self.suffix;
        self.tensors.get_mut(name).with_context(|| format!("no {suffix} of {name}"))
    }

    /// All by their names in a checkpoint.
    pub fn named(&self) -> Vec<(String, Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (self.key(name), tensor.clone())).collect()
    }

    /// Takes what `read` returns for these names.
    ///
    /// # Errors
    /// A tensor of another shape than its parameter's, or a failure of `read`.
    pub fn restore(&mut self, parameters: &Parameters, read: &dyn Fn(&str) -> Result<Tensor>) -> Result<()> {
        for (name, parameter) in parameters {
            let key = self.key(name);
            let tensor = read(&key)?;
            let (found, expected) = (tensor.dims(), parameter.dims());
            ensure!(found == expected, "{key} has shape {found:?}, the parameter {expected:?}");
            self.tensors.insert(name.clone(), tensor);
        }
        Ok(())
    }

    fn key(&self, parameter: &str) -> String {
        format!("{parameter}.{}", self.suffix)
    }
}

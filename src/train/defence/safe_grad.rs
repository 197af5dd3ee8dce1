//! SafeGrad: gradient surgery against the divergence from the aligned model (Yi et al., arXiv 2508.07172).
//!
//! With g the step's gradient without this defence and g_s that of (1 / T) Σ KL(p ‖ q) on safety samples (kl.rs), each over
//! all that trains as one vector, the step is taken with
//!
//! ```text
//! g − min(0, ⟨g, g_s⟩) / ‖g_s‖² g_s + ρ g_s
//! ```
//!
//! so that what of g would raise the divergence is taken out of it. The paper has no penalty; if there is one, its gradient
//! is part of g. Inner products are summed in f64 where the device has it, and never read from there.

use super::contract::{Defence, ExtraBatch, Needs};
use super::kl::Kl;
use super::options::DefenceOptions;
use crate::config::Settings;
use crate::data::Dataset;
use crate::model::{Decoder, Gradients};
use crate::ops::scalar::{Scalar, wide};
use crate::train::plan::Pool;
use anyhow::{Context, Result};
use candle_core::{D, DType, Tensor};
use std::sync::Arc;

/// In place of ‖g_s‖² where that is smaller: then g_s is 0 or too small to point anywhere.
const LEAST_SQUARE: f64 = 1e-30;

pub struct SafeGrad {
    rho: f64,
    kl: Kl,
}

impl SafeGrad {
    pub fn new(options: &DefenceOptions) -> Self {
        Self { rho: options.rho, kl: Kl::new(options) }
    }
}

impl Defence for SafeGrad {
    fn needs(&self) -> Needs {
        let needs = self.kl.needs();
        Needs { extra: needs.extra.map(|extra| ExtraBatch { own_gradients: true, ..extra }), ..needs }
    }

    fn prepare(&mut self, own: Option<Arc<Dataset>>, settings: &Settings, total_steps: usize) -> Result<()> {
        self.kl.prepare(own, settings, total_steps)
    }

    fn own_samples(&mut self) -> Option<&mut Pool> {
        self.kl.own_samples()
    }

    fn add_to(&mut self, step: usize, model: &mut Decoder, gradients: &mut Gradients) -> Result<Option<Vec<Scalar>>> {
        let mut safety = Gradients::default();
        let mean = self.kl.mean(step, model, 1.0, &mut safety)?;
        operate(gradients, &safety, self.rho)?;
        Ok(Some(vec![mean.times(self.rho)]))
    }
}

/// g ← g − min(0, ⟨g, g_s⟩) / ‖g_s‖² g_s + ρ g_s. Waits for no device.
fn operate(gradients: &mut Gradients, safety: &Gradients, rho: f64) -> Result<()> {
    let (mut products, mut squares) = (vec![], vec![]);
    for (name, own) in safety.iter() {
        products.push(inner(gradients.get(name)?, own)?);
        squares.push(inner(own, own)?);
    }
    let sum = |values: &[Tensor]| -> Result<Tensor> { Ok(Tensor::stack(values, 0)?.sum_all()?) };
    let share = (sum(&products)?.minimum(0.0)? / sum(&squares)?.maximum(LEAST_SQUARE)?)?;
    let factor = share.affine(-1.0, rho)?.to_dtype(DType::F32)?;
    for (name, own) in safety.iter() {
        gradients.add(name, own.broadcast_mul(&factor)?).with_context(|| name.to_string())?;
    }
    Ok(())
}

/// ⟨x, y⟩ as a scalar tensor.
fn inner(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    Ok((x * y)?.sum(D::Minus1)?.to_dtype(wide(x.device()))?.sum_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn gradients(a: [f32; 2], b: [[f32; 1]; 2]) -> Gradients {
        let mut gradients = Gradients::default();
        gradients.set("a", Tensor::new(&a, &Device::Cpu).unwrap());
        gradients.set("b", Tensor::new(&b, &Device::Cpu).unwrap());
        gradients
    }

    fn values(gradients: &Gradients) -> Vec<f32> {
        let values = |(_, tensor): (&str, &Tensor)| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        gradients.iter().flat_map(values).collect()
    }

    #[test]
    fn only_what_works_against_safety_is_taken_out() {
        let safety = gradients([1.0, 0.0], [[2.0], [0.0]]);
        // ⟨g, g_s⟩ = −5, ‖g_s‖² = 5, over all parameters together.
        let mut against = gradients([1.0, 7.0], [[-3.0], [2.0]]);
        operate(&mut against, &safety, 0.0).unwrap();
        assert_eq!(values(&against), [2.0, 7.0, -1.0, 2.0]);
        let mut with = gradients([5.0, 7.0], [[-2.0], [2.0]]);
        operate(&mut with, &safety, 0.5).unwrap();
        assert_eq!(values(&with), [5.5, 7.0, -1.0, 2.0]);
    }

    #[test]
    fn without_a_safety_gradient_nothing_changes() {
        let mut task = gradients([1.0, -7.0], [[0.5], [2.0]]);
        operate(&mut task, &gradients([0.0; 2], [[0.0]; 2]), 3.0).unwrap();
        assert_eq!(values(&task), [1.0, -7.0, 0.5, 2.0]);
    }
}

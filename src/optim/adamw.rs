//! AdamW with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101), as PyTorch computes it.
//!
//! With g the (clipped) gradient: m ← β₁ m + (1 − β₁) g; v ← β₂ v + (1 − β₂) g²; θ ← θ (1 − η w);
//! θ ← θ − η / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε). Vectors (norms, biases) are not decayed, as in transformers'
//! Trainer. Moments are f32. The kernels, for CPUs and for GPUs, update everything in place.

use super::average::{Average, CHUNK, values, values_mut};
use crate::model::{Gradients, Parameters};
use crate::names::LoraMatrix;
use crate::ops::parameters::{self, Moved, Step};
use anyhow::{Context, Result};
use candle_core::{CpuStorage, InplaceOp3, Layout, Tensor, Var};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// m and v of one parameter, in its shape.
struct Moments {
    m: Tensor,
    v: Tensor,
}

pub struct AdamW {
    betas: [f64; 2],
    epsilon: f64,
    weight_decay: f64,
    /// Factor of the learning rate for LoRA's B (LoRA+, arXiv 2402.12354).
    lora_b_ratio: f64,
    /// Steps taken: t.
    steps: i32,
    moments: BTreeMap<String, Moments>,
}

impl AdamW {
    pub fn new(betas: [f64; 2], epsilon: f64, weight_decay: f64) -> Self {
        Self { betas, epsilon, weight_decay, lora_b_ratio: 1.0, steps: 0, moments: BTreeMap::new() }
    }

    /// Trains every `lora_B` at `ratio` times the learning rate, as PEFT's `create_loraplus_optimizer` does.
    pub fn set_lora_b_ratio(&mut self, ratio: f64) {
        self.lora_b_ratio = ratio;
    }

    /// Steps taken, t.
    pub fn steps(&self) -> i32 {
        self.steps
    }

    /// The moments by `<parameter>.exp_avg` and `<parameter>.exp_avg_sq` (PyTorch's names for m and v), f32.
    pub fn moments(&self) -> BTreeMap<String, Tensor> {
        let named = |(name, Moments { m, v }): (&String, &Moments)| {
            [(format!("{name}.exp_avg"), m.clone()), (format!("{name}.exp_avg_sq"), v.clone())]
        };
        self.moments.iter().flat_map(named).collect()
    }

    /// Continues after `steps` steps with the moments that `read` returns for the names of [`AdamW::moments`].
    ///
    /// # Errors
    /// A moment whose shape is not its parameter's, or a failure of `read`.
    pub fn restore(
        &mut self,
        steps: i32,
        parameters: &Parameters,
        read: impl Fn(&str) -> Result<Tensor>,
    ) -> Result<()> {
        self.steps = steps;
        self.moments.clear();
        for (name, parameter) in parameters.iter().filter(|_| steps > 0) {
            let moment = |part: &str| {
                let moment = read(&format!("{name}.{part}"))?;
                let (found, expected) = (moment.dims(), parameter.dims());
                anyhow::ensure!(found == expected, "{name}.{part} has shape {found:?}, the parameter {expected:?}");
                Ok(moment)
            };
            let moments = Moments { m: moment("exp_avg")?, v: moment("exp_avg_sq")? };
            self.moments.insert(name.clone(), moments);
        }
        Ok(())
    }

    /// Moves every parameter by one step against its gradient times `gradient_scale` (the clipping factor).
    ///
    /// # Errors
    /// A parameter without a gradient.
    pub fn step(
        &mut self,
        parameters: &Parameters,
        gradients: &Gradients,
        learning_rate: f64,
        gradient_scale: f64,
    ) -> Result<()> {
        self.steps += 1;
        for name in parameters.keys() {
            let gradient = gradients.get(name)?;
            if !self.moments.contains_key(name) {
                let moments = Moments { m: gradient.zeros_like()?, v: gradient.zeros_like()? };
                self.moments.insert(name.clone(), moments);
            }
        }
        if self.step_on_gpu(parameters, gradients, learning_rate, gradient_scale)? {
            return Ok(());
        }
        let [beta1, beta2] = self.betas;
        for (name, parameter) in parameters {
            let gradient = gradients.get(name)?;
            let update = self.update(name, parameter, learning_rate);
            let moments = self.moments.get_mut(name).context("moments that were just made")?;
            let average = |beta, square| Average { beta, scale: gradient_scale, square };
            average(beta1, false).take_in(&mut moments.m, gradient)?;
            average(beta2, true).take_in(&mut moments.v, gradient)?;
            if gradient.device().is_cpu() {
                parameter.as_tensor().inplace_op3(&moments.m, &moments.v, &update)?;
            } else {
                update.generic(parameter, &moments.m, &moments.v)?;
            }
        }
        Ok(())
    }

    /// The same in one launch, where a kernel serves: whether it did.
    fn step_on_gpu(
        &self,
        parameters: &Parameters,
        gradients: &Gradients,
        learning_rate: f64,
        gradient_scale: f64,
    ) -> Result<bool> {
        if !gradients.iter().next().is_some_and(|(_, gradient)| parameters::serve(gradient)) {
            return Ok(false);
        }
        let mut moved = vec![];
        for (name, parameter) in parameters {
            let (update, gradient) = (self.update(name, parameter, learning_rate), gradients.get(name)?);
            let Moments { m, v } = self.moments.get(name).context("moments that were just made")?;
            moved.push(Moved {
                parameter: parameter.as_tensor(),
                m,
                v,
                gradient,
                rate: update.rate,
                keep: update.keep,
            });
        }
        let root = (1.0 - self.betas[1].powi(self.steps)).sqrt();
        parameters::adamw(&moved, &Step { betas: self.betas, scale: gradient_scale, root, epsilon: self.epsilon })
    }

    /// How a parameter moves in this step.
    fn update(&self, name: &str, parameter: &Var, learning_rate: f64) -> Update {
        let ratio = if LoraMatrix::B.is(name) { self.lora_b_ratio } else { 1.0 };
        let learning_rate = learning_rate * ratio;
        let [beta1, beta2] = self.betas;
        Update {
            rate: learning_rate / (1.0 - beta1.powi(self.steps)),
            root: (1.0 - beta2.powi(self.steps)).sqrt(),
            epsilon: self.epsilon,
            keep: 1.0 - learning_rate * if parameter.rank() > 1 { self.weight_decay } else { 0.0 },
        }
    }
}

/// θ ← keep · θ − rate · m / (√v / root + ε).
struct Update {
    rate: f64,
    root: f64,
    epsilon: f64,
    keep: f64,
}

impl Update {
    fn generic(&self, parameter: &Var, m: &Tensor, v: &Tensor) -> Result<()> {
        let denominator = v.sqrt()?.affine(1.0 / self.root, self.epsilon)?;
        let moved = ((parameter.as_tensor() * self.keep)? - ((m / denominator)? * self.rate)?)?;
        Ok(parameter.set(&moved.detach())?)
    }
}

impl InplaceOp3 for Update {
    fn name(&self) -> &'static str {
        "adamw-update"
    }

    fn cpu_fwd(
        &self,
        theta: &mut CpuStorage,
        l1: &Layout,
        m: &CpuStorage,
        l2: &Layout,
        v: &CpuStorage,
        l3: &Layout,
    ) -> candle_core::Result<()> {
        let (theta, m, v) = (values_mut(theta, l1)?, values(m, l2)?, values(v, l3)?);
        let (rate, root) = (self.rate as f32, self.root as f32);
        let (epsilon, keep) = (self.epsilon as f32, self.keep as f32);
        theta.par_chunks_mut(CHUNK).zip(m.par_chunks(CHUNK)).zip(v.par_chunks(CHUNK)).for_each(|((theta, m), v)| {
            for ((theta, m), v) in theta.iter_mut().zip(m).zip(v) {
                *theta = keep * *theta - rate * m / (v.sqrt() / root + epsilon);
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{close, random};

    /// Three steps in place and by tensor ops, from the same start.
    #[test]
    fn in_place_equals_generic() {
        let start = random(&[40, 30], 1);
        let (fast, slow) = (Var::from_tensor(&start).unwrap(), Var::from_tensor(&start).unwrap());
        let mut optimizer = AdamW::new([0.9, 0.99], 1e-8, 0.1);
        let parameters = Parameters::from([("w".to_string(), fast.clone())]);
        let (mut m, mut v) = (start.zeros_like().unwrap(), start.zeros_like().unwrap());
        for step in 1..4 {
            let gradient = random(&[40, 30], 1 + step as u64);
            let mut gradients = Gradients::default();
            gradients.add("w", gradient.clone()).unwrap();
            optimizer.step(&parameters, &gradients, 0.01, 0.5).unwrap();
            m = Average { beta: 0.9, scale: 0.5, square: false }.generic(&m, &gradient).unwrap();
            v = Average { beta: 0.99, scale: 0.5, square: true }.generic(&v, &gradient).unwrap();
            let (rate, root) = (0.01 / (1.0 - 0.9f64.powi(step)), (1.0 - 0.99f64.powi(step)).sqrt());
            Update { rate, root, epsilon: 1e-8, keep: 1.0 - 0.001 }.generic(&slow, &m, &v).unwrap();
        }
        close(&fast, &slow, 1e-6);
        assert!(crate::ops::testing::difference(&fast, &start) > 0.02);
    }
}

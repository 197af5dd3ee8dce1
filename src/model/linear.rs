//! A linear layer of the model: frozen, perhaps quantised, adapted by LoRA, or trained itself.
//!
//! y = x Wᵀ + bias + s · (drop(x) Aᵀ) Bᵀ, with x: [N, d_in], W: [d_out, d_in], A: [r, d_in], B: [d_out, r] and
//! s = lora_alpha / r (or / √r for rsLoRA). Backward, with z = drop(x): dx = dy W + s · drop((dy B) A),
//! dB = s · dyᵀ (z Aᵀ), dA = s · (dy B)ᵀ z. A, B and their branch are f32, whatever x and W are, as in PEFT.

use super::DropoutKey;
use super::parameters::Gradients;
use crate::names::LoraMatrix;
use crate::ops::sum::{add, scaled};
use crate::ops::weight::{Operand, Weight};
use crate::ops::{cast, dropout, linear};
use anyhow::Result;
use candle_core::{DType, Tensor};
use std::sync::Arc;

/// Low-rank update of one linear layer.
#[derive(Clone)]
pub struct Lora {
    /// A: [r, d_in]
    pub a: Tensor,
    /// B: [d_out, r]
    pub b: Tensor,
    pub scale: f64,
    /// Dropout on the adapter's input while training.
    pub dropout: f64,
}

/// Gets a linear's module path and its input, x: [N, d_in].
pub type Watch = Arc<dyn Fn(&str, &Tensor) -> Result<()> + Send + Sync>;

/// One linear layer of a block, under its Hugging Face module path.
#[derive(Clone)]
pub struct Linear {
    pub module: String,
    /// [d_out, d_in]
    pub weight: Weight,
    /// [d_out]
    pub bias: Option<Tensor>,
    pub lora: Option<Lora>,
    /// Whether `weight` and `bias` get gradients.
    pub trains: bool,
    /// Sees each forward pass.
    pub watch: Option<Watch>,
}

/// What the backward pass needs.
pub struct Saved {
    x: Tensor,
    /// (drop(x), drop(x) Aᵀ)
    low: Option<(Tensor, Tensor)>,
}

impl Linear {
    /// x: [N, d_in] -> y: [N, d_out]. `dropout_key` is the key of this pass, `None` outside training.
    pub fn forward(&self, x: &Tensor, dropout_key: Option<DropoutKey>) -> Result<(Tensor, Saved)> {
        let saved = self.saved(x, dropout_key)?;
        let bias = self.bias.as_ref();
        let y = match (&self.lora, &saved.low) {
            (Some(lora), Some((_, za))) => {
                let low = scaled(za, lora.scale)?;
                linear::forward_sum(&[(x, Operand::from(&self.weight)), (&low, (&lora.b).into())], bias)?
            }
            _ => linear::forward(x, &self.weight, bias)?,
        };
        Ok((y, saved))
    }

    /// What [`Linear::forward`] saves, without y.
    pub fn saved(&self, x: &Tensor, dropout_key: Option<DropoutKey>) -> Result<Saved> {
        Ok(Saved { x: x.clone(), low: self.low(x, dropout_key)? })
    }

    /// As [`Linear::forward`], for layers that read the same x.
    pub fn forward_each<const K: usize>(
        linears: [&Self; K],
        x: &Tensor,
        dropout_key: Option<DropoutKey>,
    ) -> Result<[(Tensor, Saved); K]> {
        let each: Vec<(Tensor, Saved)> = if x.dim(0)? > linear::FEW_ROWS {
            linears.iter().map(|linear| linear.forward(x, dropout_key)).collect::<Result<_>>()?
        } else {
            let outputs = linear::forward_each(x, linears.map(|linear| (&linear.weight, linear.bias.as_ref())))?;
            let adapted = linears.iter().zip(outputs).map(|(linear, y)| linear.adapt(y, x, dropout_key));
            adapted.collect::<Result<_>>()?
        };
        each.try_into().map_err(|_| anyhow::anyhow!("one for each"))
    }

    /// Adds the adapter's part to y = x Wᵀ + bias.
    fn adapt(&self, mut y: Tensor, x: &Tensor, dropout_key: Option<DropoutKey>) -> Result<(Tensor, Saved)> {
        let saved = self.saved(x, dropout_key)?;
        if let (Some(lora), Some((_, za))) = (&self.lora, &saved.low) {
            y = add(&y, &linear::forward(&scaled(za, lora.scale)?, &lora.b, None)?)?;
        }
        Ok((y, saved))
    }

    /// (z, z Aᵀ) for the adapter, if there is one.
    fn low(&self, x: &Tensor, dropout_key: Option<DropoutKey>) -> Result<Option<(Tensor, Tensor)>> {
        if let Some(watch) = &self.watch {
            watch(&self.module, x)?;
        }
        let Some(lora) = &self.lora else { return Ok(None) };
        let z = match self.mask_key(x, dropout_key) {
            Some(key) => dropout::apply_widened(x, lora.dropout, key)?,
            None => cast(x, DType::F32)?,
        };
        let za = linear::forward(&z, &lora.a, None)?;
        Ok(Some((z, za)))
    }

    /// dy: [N, d_out] -> dx: [N, d_in]; adds this linear's gradients to `gradients`.
    pub fn backward(
        &self,
        saved: &Saved,
        dy: &Tensor,
        dropout_key: Option<DropoutKey>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        Self::backward_each(&[(self, saved, dy)], dropout_key, gradients)
    }

    /// As [`Linear::backward`], for layers that read the same x: the sum of their dx.
    pub fn backward_each(
        linears: &[(&Self, &Saved, &Tensor)],
        dropout_key: Option<DropoutKey>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let (mut low, mut dropped) = (vec![], vec![]);
        for (linear, saved, dy) in linears {
            if let (Some(lora), Some(dyb)) = (&linear.lora, linear.gradients(saved, dy, gradients)?) {
                match linear.mask_key(&saved.x, dropout_key) {
                    Some(key) if lora.dropout > 0.0 => {
                        dropped.push((linear::backward_input(&dyb, &lora.a)?, lora.dropout, key));
                    }
                    _ => low.push((dyb, &lora.a)),
                }
            }
        }
        let whole = linears.iter().map(|(linear, _, dy)| (*dy, Operand::from(&linear.weight)));
        let terms: Vec<(&Tensor, Operand)> = whole.chain(low.iter().map(|(dyb, a)| (dyb, (*a).into()))).collect();
        let dropped = dropped.iter();
        dropped.fold(linear::backward_input_sum(&terms), |dx, (part, p, key)| dropout::add(&dx?, part, *p, *key))
    }

    /// Adds this linear's gradients to `gradients`; returns s · dy B if there is an adapter.
    fn gradients(&self, saved: &Saved, dy: &Tensor, gradients: &mut Gradients) -> Result<Option<Tensor>> {
        let mut low = None;
        if let (Some(lora), Some((z, za))) = (&self.lora, &saved.low) {
            let dy = cast(dy, DType::F32)?;
            let dyb = scaled(&linear::backward_input(&dy, &lora.b)?, lora.scale)?;
            gradients.add(&LoraMatrix::A.name(&self.module), linear::backward_weight(&dyb, z)?)?;
            gradients
                .add(&LoraMatrix::B.name(&self.module), scaled(&linear::backward_weight(&dy, za)?, lora.scale)?)?;
            low = Some(dyb);
        }
        if self.trains {
            gradients.add(&format!("{}.weight", self.module), linear::backward_weight(dy, &saved.x)?)?;
            if self.bias.is_some() {
                gradients.add(&format!("{}.bias", self.module), linear::backward_bias(dy)?)?;
            }
        }
        Ok(low)
    }

    /// The key of this layer's mask for x: [N, d_in]. A mask is a function of (key, index), so a part of a micro-batch gets its
    /// part of the mask.
    fn mask_key(&self, x: &Tensor, key: Option<DropoutKey>) -> Option<u64> {
        let DropoutKey { seed, first_row } = key?;
        let before = first_row * x.dims().last()?;
        Some(dropout::mix(seed ^ name_key(&self.module)).wrapping_add(before as u64))
    }
}

/// FNV-1a of a module's name: dropout masks depend on the module, not on its place in a list.
fn name_key(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Case, close, random};

    /// With dropout on, against finite differences through the same masks: rank 2, scale 1.5, bias, trained weight.
    #[test]
    fn gradients_match_finite_differences_under_dropout() {
        let (n, d_in, d_out, r) = (6, 5, 4, 2);
        let key = DropoutKey { seed: 77, first_row: 0 };
        let lora = Lora { a: random(&[r, d_in], 1), b: random(&[d_out, r], 2), scale: 1.5, dropout: 0.4 };
        let layer = Linear {
            module: "m".into(),
            weight: random(&[d_out, d_in], 3).into(),
            bias: Some(random(&[d_out], 4)),
            lora: Some(lora.clone()),
            trains: true,
            watch: None,
        };
        let (x, dy) = (random(&[n, d_in], 5), random(&[n, d_out], 6));
        let (y, saved) = layer.forward(&x, Some(key)).unwrap();
        let mut gradients = Gradients::default();
        let dx = layer.backward(&saved, &dy, Some(key), &mut gradients).unwrap();

        let ones = Tensor::ones_like(&x).unwrap();
        let mask = dropout::apply(&ones, lora.dropout, layer.mask_key(&ones, Some(key)).unwrap()).unwrap();
        let mask = wide(&mask);
        let inputs = vec![x, layer.weight.tensor().unwrap().clone(), layer.bias.clone().unwrap(), lora.a, lora.b];
        let function = move |v: &[Tensor]| {
            let low = (&v[0] * &mask)?.matmul(&v[3].t()?)?.matmul(&v[4].t()?)?;
            v[0].matmul(&v[1].t()?)?.broadcast_add(&v[2])? + (low * 1.5)?
        };
        close(&y, &function(&inputs.iter().map(wide).collect::<Vec<_>>()).unwrap(), 1e-6);
        let of = |name: &str| gradients.get(name).unwrap();
        let case = Case::new(inputs, dy, function);
        case.check(&[&dx, of("m.weight"), of("m.bias"), of("m.lora_A.weight"), of("m.lora_B.weight")], 1e-5);
    }

    fn wide(x: &Tensor) -> Tensor {
        x.to_dtype(candle_core::DType::F64).unwrap()
    }
}

//! A linear of the model, frozen, adapted by LoRA, or trained itself.
//!
//! y = x Wᵀ + bias + s · (drop(x) Aᵀ) Bᵀ, with x: [N, d_in], W: [d_out, d_in], A: [r, d_in], B: [d_out, r] and
//! s = lora_alpha / r (or / √r for rsLoRA). Backward, with z = drop(x): dx = dy W + s · drop((dy B) A),
//! dB = s · dyᵀ (z Aᵀ), dA = s · (dy B)ᵀ z. A, B and their branch are f32, whatever x and W are, as PEFT has it.

use super::parameters::Gradients;
use crate::ops::sum::add;
use crate::ops::{dropout, linear};
use anyhow::Result;
use candle_core::{DType, Tensor};

/// Low-rank update of one linear.
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

/// One linear of a block, under its Hugging Face module path.
pub struct Linear {
    pub module: String,
    /// [d_out, d_in]
    pub weight: Tensor,
    /// [d_out]
    pub bias: Option<Tensor>,
    pub lora: Option<Lora>,
    /// Whether `weight` and `bias` get gradients.
    pub trains: bool,
}

/// What the backward pass needs.
pub struct Saved {
    x: Tensor,
    /// (drop(x), drop(x) Aᵀ)
    low: Option<(Tensor, Tensor)>,
}

impl Linear {
    /// x: [N, d_in] -> y: [N, d_out]. `dropout_key` is the key of this pass, `None` outside training.
    pub fn forward(&self, x: &Tensor, dropout_key: Option<u64>) -> Result<(Tensor, Saved)> {
        self.adapt(linear::forward(x, &self.weight, self.bias.as_ref())?, x, dropout_key)
    }

    /// As [`Linear::forward`], for linears that read the same x.
    pub fn forward_each<const K: usize>(
        linears: [&Self; K],
        x: &Tensor,
        dropout_key: Option<u64>,
    ) -> Result<[(Tensor, Saved); K]> {
        let outputs = linear::forward_each(x, linears.map(|linear| (&linear.weight, linear.bias.as_ref())))?;
        let adapted = linears.iter().zip(outputs).map(|(linear, y)| linear.adapt(y, x, dropout_key));
        let adapted: Vec<(Tensor, Saved)> = adapted.collect::<Result<_>>()?;
        adapted.try_into().map_err(|_| anyhow::anyhow!("one for each"))
    }

    /// Adds the adapter's part to y = x Wᵀ + bias.
    fn adapt(&self, mut y: Tensor, x: &Tensor, dropout_key: Option<u64>) -> Result<(Tensor, Saved)> {
        let mut low = None;
        if let Some(lora) = &self.lora {
            let z = self.drop(lora, &x.to_dtype(DType::F32)?, dropout_key)?;
            let za = linear::forward(&z, &lora.a, None)?;
            y = add(&y, &linear::forward(&(&za * lora.scale)?, &lora.b, None)?)?;
            low = Some((z, za));
        }
        Ok((y, Saved { x: x.clone(), low }))
    }

    /// dy: [N, d_out] -> dx: [N, d_in]; adds this linear's gradients to `gradients`.
    pub fn backward(
        &self,
        saved: &Saved,
        dy: &Tensor,
        dropout_key: Option<u64>,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let mut dx = linear::backward_input(dy, &self.weight)?;
        if let (Some(lora), Some((z, za))) = (&self.lora, &saved.low) {
            let dy = dy.to_dtype(DType::F32)?;
            let dyb = (linear::backward_input(&dy, &lora.b)? * lora.scale)?;
            gradients.add(&self.lora_name('A'), linear::backward_weight(&dyb, z)?)?;
            gradients.add(&self.lora_name('B'), (linear::backward_weight(&dy, za)? * lora.scale)?)?;
            let dz = linear::backward_input(&dyb, &lora.a)?;
            dx = add(&dx, &self.drop(lora, &dz, dropout_key)?)?;
        }
        if self.trains {
            gradients.add(&format!("{}.weight", self.module), linear::backward_weight(dy, &saved.x)?)?;
            if self.bias.is_some() {
                gradients.add(&format!("{}.bias", self.module), linear::backward_bias(dy)?)?;
            }
        }
        Ok(dx)
    }

    fn drop(&self, lora: &Lora, x: &Tensor, key: Option<u64>) -> Result<Tensor> {
        match key {
            Some(key) => dropout::apply(x, lora.dropout, dropout::mix(key ^ name_key(&self.module))),
            None => Ok(x.clone()),
        }
    }

    /// Name of the adapter matrix, without PEFT's prefix.
    fn lora_name(&self, matrix: char) -> String {
        format!("{}.lora_{matrix}.weight", self.module)
    }
}

/// FNV-1a of a module's name: dropout masks belong to the module, not to its place in a list.
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
        let (n, d_in, d_out, r, key) = (6, 5, 4, 2, 77);
        let lora = Lora { a: random(&[r, d_in], 1), b: random(&[d_out, r], 2), scale: 1.5, dropout: 0.4 };
        let layer = Linear {
            module: "m".into(),
            weight: random(&[d_out, d_in], 3),
            bias: Some(random(&[d_out], 4)),
            lora: Some(lora.clone()),
            trains: true,
        };
        let (x, dy) = (random(&[n, d_in], 5), random(&[n, d_out], 6));
        let (y, saved) = layer.forward(&x, Some(key)).unwrap();
        let mut gradients = Gradients::default();
        let dx = layer.backward(&saved, &dy, Some(key), &mut gradients).unwrap();

        let ones = Tensor::ones_like(&x).unwrap();
        let mask = layer.drop(&lora, &ones, Some(key)).unwrap().to_dtype(candle_core::DType::F64).unwrap();
        let inputs = vec![x, layer.weight.clone(), layer.bias.clone().unwrap(), lora.a, lora.b];
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

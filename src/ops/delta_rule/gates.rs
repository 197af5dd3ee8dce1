//! What a gated DeltaNet forgets and how much it writes: g = −e^A softplus(a + b), β = σ(w); a, w, g, β: [N, H], A, b: [H], f32.
//!
//! Backward, with s = −e^A σ(a + b): da = dg s; db = Σ_n da; dA = Σ_n dg g; dw = dβ β (1 − β). On any device: a few values a row.

use anyhow::Result;
use candle_core::{DType, Tensor};

/// g and β, and what their backward pass needs.
pub struct Gates {
    /// g
    pub decay: Tensor,
    /// β
    pub beta: Tensor,
    /// s
    slope: Tensor,
}

impl Gates {
    /// a, w: [N, H], a_log (A), dt_bias (b): [H]
    pub fn forward(a: &Tensor, w: &Tensor, a_log: &Tensor, dt_bias: &Tensor) -> Result<Self> {
        let x = a.to_dtype(DType::F32)?.broadcast_add(dt_bias)?;
        let rate = a_log.exp()?.neg()?;
        // softplus x = max(x, 0) + ln(1 + e^−|x|): no power is too large.
        let softplus = (x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
        Ok(Self {
            decay: softplus.broadcast_mul(&rate)?,
            beta: candle_nn::ops::sigmoid(&w.to_dtype(DType::F32)?)?,
            slope: candle_nn::ops::sigmoid(&x)?.broadcast_mul(&rate)?,
        })
    }

    /// dg, dβ -> (da, dw) in f32, and (dA, db)
    pub fn backward(&self, d_decay: &Tensor, d_beta: &Tensor) -> Result<([Tensor; 2], [Tensor; 2])> {
        let da = (d_decay * &self.slope)?;
        let dw = ((d_beta * &self.beta)? * (1.0 - &self.beta)?)?;
        let (d_log, d_bias) = ((d_decay * &self.decay)?.sum(0)?, da.sum(0)?);
        Ok(([da, dw], [d_log, d_bias]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Case, random};

    #[test]
    fn gradients_match_finite_differences() {
        let (a, w) = ((random(&[5, 3], 1) * 6.0).unwrap(), (random(&[5, 3], 2) * 3.0).unwrap());
        let inputs = [a, w, random(&[3], 3), random(&[3], 4)];
        let (d_decay, d_beta) = (random(&[5, 3], 5), random(&[5, 3], 6));
        let gates = Gates::forward(&inputs[0], &inputs[1], &inputs[2], &inputs[3]).unwrap();
        let ([da, dw], [d_log, d_bias]) = gates.backward(&d_decay, &d_beta).unwrap();
        let dy = Tensor::cat(&[d_decay, d_beta], 0).unwrap();
        let function = |v: &[Tensor]| {
            let softplus = (v[0].broadcast_add(&v[3])?.exp()? + 1.0)?.log()?;
            let decay = softplus.broadcast_mul(&v[2].exp()?)?.neg()?;
            Tensor::cat(&[decay, (v[1].neg()?.exp()? + 1.0)?.recip()?], 0)
        };
        Case::new(inputs.to_vec(), dy, function).check(&[&da, &dw, &d_log, &d_bias], 1e-5);
    }

    #[test]
    fn large_values_stay_finite() {
        let x = Tensor::new(&[[1e4f32], [-1e4]], &candle_core::Device::Cpu).unwrap();
        let zero = Tensor::zeros(1, DType::F32, x.device()).unwrap();
        let gates = Gates::forward(&x, &x, &zero, &zero).unwrap();
        assert_eq!(gates.decay.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [-1e4, 0.0]);
        assert_eq!(gates.beta.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [1.0, 0.0]);
    }
}

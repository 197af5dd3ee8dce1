//! The penalty `input`, on what an update does to the inputs of the alignment data.
//!
//! Under gradient descent V = −η Σ δ xᵀ: its rows span the activations x that alignment trained on, its columns only the gradients δ
//! of the outputs. What an update does to such an activation is ΔW x, so the penalty is on the side of V's rows,
//!
//! ```text
//! λ s² ((d_in / ‖V‖_F²) ‖ΔW Vᵀ‖_F² + ε ‖ΔW‖_F²)        ε = asft.input_mix
//! ```
//!
//! whose first part is ‖ΔW‖² for an update without preference among its inputs. With V = U diag(σ) Rᵀ, σ_i² = c_i ‖V‖_F,
//! w_i = d_in c_i / ‖V‖_F, and ΔW = B A for LoRA:
//!
//! ```text
//! N = A R    H = (w ∘ N) Rᵀ + ε A    T = BᵀB    S = H Aᵀ
//! value = λ s² ⟨T, S⟩    ∂A = 2 λ s² T H    ∂B = 2 λ s² B S
//! ```
//!
//! and for an update known as a whole ∂ΔW = 2 λ ((w ∘ ΔW R) Rᵀ + ε ΔW). Neither U nor V itself is needed. The cost is
//! O(r k d_in + r² (d_out + d_in)) per module. A direction truncated at k leaves out what is in V − V_k, the share
//! 1 − Σ c_i / ‖V‖_F of ‖V‖².
//!
//! Shapes: A [r, d_in], B [d_out, r], R [d_in, k], w [k]; sums of products are f64 if the device has it (all but Metal).

use super::spectral::Direction;
use super::term::{FullTerm, Term};
use crate::ops::scalar::{Scalar, wide};
use anyhow::Result;
use candle_core::{DType, Device, Tensor};

/// One module's R and w, on the training device.
#[derive(Clone, Debug)]
pub struct Input {
    /// [d_in, k]
    right: Tensor,
    /// [1, k]
    weights: Tensor,
}

impl Input {
    /// On the device of `direction`, which must hold R and have V ≠ 0.
    pub fn new(direction: &Direction) -> Result<Self> {
        let (right, k) = (direction.right()?.clone(), direction.rank());
        let of_one = direction.shape.1 as f64 / f64::from(direction.v_norm);
        let weights = direction.eigenvalues.iter().map(|&c| (f64::from(c) * of_one) as f32).collect::<Vec<_>>();
        Ok(Self { weights: Tensor::from_vec(weights, (1, k), &Device::Cpu)?.to_device(right.device())?, right })
    }

    /// Of any R [d_in, k], not only an orthonormal one, with the same weight for all of its columns.
    pub fn weighted(right: Tensor, weight: f64) -> Result<Self> {
        let weights = Tensor::full(weight as f32, (1, right.dim(1)?), right.device())?;
        Ok(Self { right, weights })
    }

    /// How many directions there are.
    pub fn rank(&self) -> usize {
        self.weights.elem_count()
    }

    /// (w ∘ x R) Rᵀ for x [n, d_in]
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.matmul(&self.right)?.broadcast_mul(&self.weights)?.matmul(&self.right.t()?)?)
    }
}

/// (w ∘ x R) Rᵀ + ε x for x [n, d_in]; `input` is missing where V = 0.
fn mixed(input: Option<&Input>, x: &Tensor, mix: f64) -> Result<Tensor> {
    match input {
        Some(input) if mix == 0.0 => input.apply(x),
        Some(input) => Ok((input.apply(x)? + (x * mix)?)?),
        None => Ok((x * mix)?),
    }
}

/// The penalty of ΔW = B A; `weight` is λ s².
pub fn lora(input: Option<&Input>, a: &Tensor, b: &Tensor, mix: f64, weight: f64) -> Result<Term> {
    let wide = wide(a.device());
    let (h, b_wide) = (mixed(input, a, mix)?, b.to_dtype(wide)?);
    let (s, t) = (h.to_dtype(wide)?.matmul(&a.to_dtype(wide)?.t()?)?, b_wide.t()?.matmul(&b_wide)?);
    let value = Scalar::of((&t * &s)?.sum_all()?)?.times(weight);
    let [s, t] = [s, t].map(|product| product.to_dtype(DType::F32));
    let factor = 2.0 * weight;
    Ok(Term { value, grad_a: (t?.matmul(&h)? * factor)?, grad_b: (b.matmul(&s?)? * factor)? })
}

/// The penalty of ΔW [d_out, d_in] itself.
pub fn full(input: Option<&Input>, delta_w: &Tensor, mix: f64, lambda: f64) -> Result<FullTerm> {
    let h = mixed(input, delta_w, mix)?;
    let wide = wide(delta_w.device());
    // Row by row in the compute type, and the rows in f64: all terms of a row's sum but rounding are of one sign.
    let value = Scalar::of((delta_w * &h)?.sum(1)?.to_dtype(wide)?.sum_all()?)?.times(lambda);
    Ok(FullTerm { value, grad: (h * (2.0 * lambda))? })
}

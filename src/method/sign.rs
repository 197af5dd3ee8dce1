//! The signed part of the penalty `orthogonal+reverse`, on what moves against V.
//!
//! C depends on V's directions but not on its sign: adding V to the weights costs the same as subtracting it, though
//! subtracting it turns the aligned model into the unaligned one. With p the component of the update along V,
//!
//! ```text
//! p = s ⟨ΔW, V⟩ / ‖V‖_F        value = λ min(0, p)²        ∂ΔW = 2 λ s min(0, p) V / ‖V‖_F
//! ```
//!
//! and V = U diag(σ) Rᵀ, σ_i = sqrt(c_i ‖V‖_F), so that with w_i = σ_i / ‖V‖_F = sqrt(c_i / ‖V‖_F) and ΔW = B A
//!
//! ```text
//! L = Uᵀ B [k, r]    N = A R [r, k]    p = s Σ_ij w_i L_ij N_ji
//! ∂A = 2 λ s min(0, p) (w ∘ L)ᵀ Rᵀ     ∂B = 2 λ s min(0, p) U (w ∘ Nᵀ)
//! ```
//!
//! The cost is O(r k (d_out + d_in)) per module, and nothing for the gradient if p ≥ 0. A direction truncated at k
//! leaves out V − V_k, which is orthogonal to V_k: the error in p is at most ‖ΔW‖_F sqrt(1 − Σ c_i / ‖V‖_F).
//!
//! Shapes: A [r, d_in], B [d_out, r], U [d_out, k], R [d_in, k], c and w [k].

use super::spectral::Direction;
use super::term::{FullTerm, Term};
use crate::ops::low_rank;
use crate::ops::scalar::{Scalar, wide};
use anyhow::Result;
use candle_core::{DType, Device, Tensor};

/// One module's V / ‖V‖_F, as far as the direction holds V, on the training device.
#[derive(Clone, Debug)]
pub struct Sign {
    /// U [d_out, k].
    left: Tensor,
    /// R [d_in, k].
    right: Tensor,
    /// w [k, 1].
    weights: Tensor,
}

impl Sign {
    /// On the device of `direction`, which must hold R.
    pub fn new(direction: &Direction) -> Result<Self> {
        let (left, right, k) = (direction.basis.clone(), direction.right()?.clone(), direction.rank());
        let c = Tensor::new(direction.eigenvalues.as_slice(), &Device::Cpu)?.to_dtype(DType::F64)?;
        let weights = (c / f64::from(direction.v_norm))?.sqrt()?.to_dtype(DType::F32)?.reshape((k, 1))?;
        Ok(Self { weights: weights.to_device(left.device())?, left, right })
    }

    /// w ∘ Uᵀ x, [k, n], for x [d_out, n].
    fn weighted(&self, x: &Tensor) -> Result<Tensor> {
        Ok(low_rank::coordinates(&self.left, x)?.broadcast_mul(&self.weights)?)
    }

    /// Adds this part of the penalty of ΔW = B A; `weight` is λ s².
    pub fn add_lora(&self, term: Term, a: &Tensor, b: &Tensor, weight: f64) -> Result<Term> {
        let (left, right) = (self.weighted(b)?, a.matmul(&self.right)?);
        let Some(Against { square, slope }) = Against::of(product(&left, &right.t()?)?, weight)? else {
            return Ok(term);
        };
        let grad_a = left.t()?.matmul(&self.right.t()?)?.broadcast_mul(&slope)?;
        let grad_b = self.left.matmul(&right.t()?.broadcast_mul(&self.weights)?)?.broadcast_mul(&slope)?;
        Ok(Term { value: term.value.plus(square)?, grad_a: (term.grad_a + grad_a)?, grad_b: (term.grad_b + grad_b)? })
    }

    /// Adds this part of the penalty of ΔW [d_out, d_in] itself.
    pub fn add_full(&self, term: FullTerm, delta_w: &Tensor, lambda: f64) -> Result<FullTerm> {
        let along = product(&self.weighted(delta_w)?, &self.right.t()?)?;
        let Some(Against { square, slope }) = Against::of(along, lambda)? else { return Ok(term) };
        let unit = self.left.matmul(&self.right.t()?.broadcast_mul(&self.weights)?)?;
        let grad = (term.grad + unit.broadcast_mul(&slope)?)?;
        Ok(FullTerm { value: term.value.plus(square)?, grad })
    }
}

/// The cost of moving against V, λ s² min(0, p)², and its slope 2 λ s² min(0, p) as a tensor of one f32.
struct Against {
    square: Scalar,
    slope: Tensor,
}

impl Against {
    /// `along`: ⟨ΔW, V⟩ / ‖V‖_F. `None` if it is known not to be against V.
    fn of(along: Tensor, weight: f64) -> Result<Option<Self>> {
        if let Scalar::Known(along) = Scalar::of(along.clone())?
            && along >= 0.0
        {
            return Ok(None);
        }
        let against = along.minimum(0.0)?;
        let slope = (&against * (2.0 * weight))?.to_dtype(DType::F32)?;
        Ok(Some(Self { square: Scalar::of(against.sqr()?)?.times(weight), slope }))
    }
}

/// Σ_ij x_ij y_ij: terms of both signs, so summed in f64.
fn product(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let wide = wide(x.device());
    Ok((x.to_dtype(wide)? * y.to_dtype(wide)?)?.sum_all()?)
}

//! A module's direction in its factors:
//!
//! ```text
//! V ≈ U diag(σ) Rᵀ        C = V Vᵀ / ‖V‖_F ≈ U diag(c) Uᵀ        c_i = σ_i² / ‖V‖_F
//! ```
//!
//! Shapes: V [d_out, d_in], U [d_out, k], R [d_in, k], c and σ [k].

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};

/// One module's V, as far as it is kept: everything that is penalised, measured, projected or moved along starts here.
/// On the CPU as computed or read; [`Direction::to_device`] moves it elsewhere.
#[derive(Clone, Debug)]
pub struct Direction {
    /// (d_out, d_in) of V.
    pub shape: (usize, usize),
    /// U [d_out, k], f32: orthonormal columns, eigenvalue-descending.
    pub basis: Tensor,
    /// R [d_in, k], f32: V's right singular vectors. C does not need them, but V's sign does, so they may be left
    /// unread.
    pub right: Option<Tensor>,
    /// c [k], positive and descending.
    pub eigenvalues: Vec<f32>,
    /// ‖V‖_F
    pub v_norm: f32,
    /// An upper bound on ‖C − U diag(c) Uᵀ‖₂.
    pub residual: f32,
}

impl Direction {
    /// The direction of a module with V = 0.
    pub fn zero((d_out, d_in): (usize, usize)) -> Result<Self> {
        let none = |rows: usize| Tensor::zeros((rows, 0), DType::F32, &Device::Cpu);
        let (basis, right) = (none(d_out)?, Some(none(d_in)?));
        Ok(Self { shape: (d_out, d_in), basis, right, eigenvalues: vec![], v_norm: 0.0, residual: 0.0 })
    }

    /// k; 0 where V = 0.
    pub fn rank(&self) -> usize {
        self.eigenvalues.len()
    }

    /// R.
    ///
    /// # Errors
    /// R was not read.
    pub fn right(&self) -> Result<&Tensor> {
        self.right.as_ref().context("a direction without V's right singular vectors")
    }

    /// The same without R.
    pub fn without_right(&self) -> Self {
        Self { right: None, ..self.clone() }
    }

    /// The same with U and R on `device`.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let right = self.right.as_ref().map(|right| right.to_device(device)).transpose()?;
        Ok(Self { basis: self.basis.to_device(device)?, right, ..self.clone() })
    }

    /// σ [k], in f64.
    pub fn sigma(&self) -> Vec<f64> {
        self.eigenvalues.iter().map(|&c| (f64::from(c) * f64::from(self.v_norm)).sqrt()).collect()
    }

    /// The share of ‖V‖_F² that is kept.
    pub fn energy(&self) -> f64 {
        self.energy_of(self.rank())
    }

    /// The share of ‖V‖_F² in the k leading directions; 1 where V = 0.
    pub fn energy_of(&self, k: usize) -> f64 {
        let held: f64 = self.eigenvalues[..k].iter().copied().map(f64::from).sum();
        if self.v_norm > 0.0 { (held / f64::from(self.v_norm)).min(1.0) } else { 1.0 }
    }

    /// The fewest leading directions with at least this share of ‖V‖_F²; `None` if all that are kept have less.
    pub fn leading(&self, energy: f64) -> Option<usize> {
        let wanted = energy * f64::from(self.v_norm);
        let mut held = 0.0;
        let enough = |&c: &f32| {
            held += f64::from(c);
            held >= wanted
        };
        self.eigenvalues.iter().position(enough).map(|last| last + 1)
    }

    /// C x = U (c ∘ (Uᵀx)) for x [d_out, n], all in f64.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        if self.rank() == 0 {
            return Ok(x.zeros_like()?);
        }
        let basis = self.basis.to_dtype(DType::F64)?;
        let c = Tensor::new(self.eigenvalues.as_slice(), x.device())?.to_dtype(DType::F64)?.unsqueeze(1)?;
        Ok(basis.matmul(&basis.t()?.matmul(x)?.broadcast_mul(&c)?)?)
    }

    /// U_k diag(σ_k) R_kᵀ [d_out, d_in], f32, of the k leading directions, or of all if there are fewer: this is V if
    /// it has no more.
    pub fn matrix(&self, k: usize) -> Result<Tensor> {
        let k = k.min(self.rank());
        if k == 0 {
            return Ok(Tensor::zeros(self.shape, DType::F32, self.basis.device())?);
        }
        let sigma: Vec<f32> = self.sigma()[..k].iter().map(|&sigma| sigma as f32).collect();
        let left = self.basis.narrow(1, 0, k)?.broadcast_mul(&Tensor::new(sigma, self.basis.device())?)?;
        Ok(left.matmul(&self.right()?.narrow(1, 0, k)?.t()?)?)
    }
}

//! How an update ΔW stands to a module's direction, without forming ΔW, C or a projector.
//!
//! C = V Vᵀ / ‖V‖_F ≈ U diag(c) Uᵀ, V ≈ U diag(σ) Rᵀ with σ_i = sqrt(c_i ‖V‖_F), and P = U_p U_pᵀ, the projector on the
//! fewest leading columns of U that hold 0.9 of ‖V‖_F². For LoRA, ΔW = s B A, with M = UᵀB, N = A R and S = A Aᵀ:
//!
//! ```text
//! ‖ΔW‖² = s² ⟨BᵀB, S⟩             ‖C ΔW‖² = s² ⟨Mᵀ diag(c²) M, S⟩      ⟨C ΔW, ΔW⟩ = s² ⟨Mᵀ diag(c) M, S⟩
//! ‖P ΔW‖² = s² ⟨M_pᵀ M_p, S⟩      ⟨ΔW, V⟩ = s Σ_i σ_i (M N)_ii
//! ```
//!
//! For an update that is known as a whole, the same with H = UᵀΔW [k, d_in] in place of the products with A.
//!
//! Shapes: B [d_out, r], A [r, d_in], U [d_out, k], R [d_in, k], c [k]. Products of LoRA factors are f64.

use super::direction_file::Directions;
use super::options::DEFAULT_SUBSPACE_ENERGY;
use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};

/// One module's direction as the shares need it, on the CPU.
pub struct Direction {
    pub d_out: usize,
    pub d_in: usize,
    /// U [d_out, k], f32.
    pub basis: Tensor,
    /// R [d_in, k], f32.
    pub right: Tensor,
    /// c [k], descending.
    pub eigenvalues: Vec<f64>,
    /// ‖V‖_F
    pub v_norm: f64,
    /// An upper bound on ‖C − U diag(c) Uᵀ‖₂.
    pub residual: f64,
}

/// The numbers from which every share follows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Products {
    /// ‖ΔW‖_F²
    pub square: f64,
    /// ‖C ΔW‖_F²
    pub c_square: f64,
    /// ⟨C ΔW, ΔW⟩
    pub c_inner: f64,
    /// ‖P ΔW‖_F²
    pub p_square: f64,
    /// ‖UᵀΔW‖_F²
    pub span_square: f64,
    /// ⟨ΔW, V⟩
    pub v_inner: f64,
}

impl Direction {
    pub fn load(directions: &Directions, module: &str) -> Result<Self> {
        let factors = directions.factors(module)?;
        let right = directions.right_basis(module)?;
        let (d_out, d_in) = (factors.basis.dim(0)?, right.dim(0)?);
        let eigenvalues = factors.eigenvalues.to_dtype(DType::F64)?.to_vec1()?;
        let (v_norm, residual) = (f64::from(factors.v_norm), f64::from(factors.residual));
        Ok(Self { d_out, d_in, basis: factors.basis, right, eigenvalues, v_norm, residual })
    }

    /// k; 0 where V = 0.
    pub fn rank(&self) -> usize {
        self.eigenvalues.len()
    }

    /// σ, the singular values of V that the file holds.
    pub fn sigma(&self) -> Vec<f64> {
        self.eigenvalues.iter().map(|c| (c * self.v_norm).sqrt()).collect()
    }

    /// Columns of P, and the share of ‖V‖_F² that they hold: the fewest with 0.9, else all that the file has.
    pub fn subspace(&self) -> (usize, f64) {
        let mut held = 0.0;
        for (i, c) in self.eigenvalues.iter().enumerate() {
            held += c;
            if held >= DEFAULT_SUBSPACE_ENERGY * self.v_norm {
                return (i + 1, (held / self.v_norm).min(1.0));
            }
        }
        (self.rank(), self.energy())
    }

    /// C x = U (c ∘ (Uᵀx)) in f64, for x [d_out, n] in f64.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        if self.rank() == 0 {
            return Ok(x.zeros_like()?);
        }
        let basis = self.basis.to_dtype(DType::F64)?;
        let c = Tensor::from_slice(&self.eigenvalues, (self.rank(), 1), &Device::Cpu)?;
        Ok(basis.matmul(&basis.t()?.matmul(x)?.broadcast_mul(&c)?)?)
    }

    /// V ≈ U diag(σ) Rᵀ [d_out, d_in] in f32.
    pub fn matrix(&self) -> Result<Tensor> {
        if self.rank() == 0 {
            return Ok(Tensor::zeros((self.d_out, self.d_in), DType::F32, &Device::Cpu)?);
        }
        let sigma: Vec<f32> = self.sigma().into_iter().map(|sigma| sigma as f32).collect();
        let scaled = self.basis.broadcast_mul(&Tensor::new(sigma, &Device::Cpu)?)?;
        Ok(scaled.matmul(&self.right.t()?)?)
    }

    /// The products of ΔW = s B A.
    pub fn lora(&self, a: &Tensor, b: &Tensor, scale: f64) -> Result<Products> {
        self.check(b.dim(0)?, a.dim(1)?)?;
        let (a, b) = (a.to_dtype(DType::F64)?, b.to_dtype(DType::F64)?);
        let s = a.matmul(&a.t()?)?;
        let scale_square = scale * scale;
        let square = scale_square * sum(&(b.t()?.matmul(&b)? * &s)?)?;
        if self.rank() == 0 {
            return Ok(Products { square, ..Default::default() });
        }
        let m = self.basis.to_dtype(DType::F64)?.t()?.matmul(&b)?; // [k, r]
        let n = a.matmul(&self.right.to_dtype(DType::F64)?)?; // [r, k]
        // Row i of both: ‖(UᵀΔW)_i‖² and (UᵀΔW)_i · R_i, without s.
        let row_squares: Vec<f64> = (m.matmul(&s)? * &m)?.sum(1)?.to_vec1()?;
        let row_inner: Vec<f64> = (&m * &n.t()?)?.sum(1)?.to_vec1()?;
        let rows = row_squares.iter().map(|square| square * scale_square);
        Ok(self.combine(square, rows, row_inner.iter().map(|inner| inner * scale)))
    }

    /// The products of ΔW [d_out, d_in], f32. UᵀΔW is computed in f32, sums are f64.
    pub fn full(&self, delta_w: &Tensor) -> Result<Products> {
        self.check(delta_w.dim(0)?, delta_w.dim(1)?)?;
        let square = inner(delta_w, delta_w)?.iter().sum();
        if self.rank() == 0 {
            return Ok(Products { square, ..Default::default() });
        }
        let h = self.basis.t()?.matmul(delta_w)?; // [k, d_in]
        let right = self.right.t()?.contiguous()?;
        Ok(self.combine(square, inner(&h, &h)?.into_iter(), inner(&h, &right)?.into_iter()))
    }

    /// From ‖(UᵀΔW)_i‖² and (UᵀΔW)_i · R_i of every i.
    fn combine(
        &self,
        square: f64,
        row_squares: impl Iterator<Item = f64>,
        row_inner: impl Iterator<Item = f64>,
    ) -> Products {
        let mut products = Products { square, ..Default::default() };
        let (p, _) = self.subspace();
        for (i, (c, row)) in self.eigenvalues.iter().zip(row_squares).enumerate() {
            products.c_square += c * c * row;
            products.c_inner += c * row;
            products.p_square += if i < p { row } else { 0.0 };
            products.span_square += row;
        }
        products.v_inner = self.sigma().iter().zip(row_inner).map(|(sigma, inner)| sigma * inner).sum();
        products
    }

    fn check(&self, d_out: usize, d_in: usize) -> Result<()> {
        let fits = (d_out, d_in) == (self.d_out, self.d_in);
        ensure!(fits, "the update is [{d_out}, {d_in}], the direction [{}, {}]", self.d_out, self.d_in);
        Ok(())
    }

    /// How far cos(C ΔW, ΔW) can be from the file's because of what it leaves out of C.
    ///
    /// With ρ the residual, a = ‖Ĉ ΔW‖ / ‖ΔW‖ and ‖C − Ĉ‖₂ ≤ ρ, ⟨CΔW, ΔW⟩ / ‖ΔW‖² and ‖CΔW‖ / ‖ΔW‖ are each off by at most ρ;
    /// so their quotient is by at most ρ (1 + cos) / (a − ρ).
    pub fn cosine_bound(&self, products: &Products) -> f64 {
        let share = products.c_share().unwrap_or(0.0);
        let cosine = products.cosine().unwrap_or(0.0);
        if share > self.residual { (self.residual * (1.0 + cosine) / (share - self.residual)).min(1.0) } else { 1.0 }
    }

    /// How far ⟨ΔW, V⟩ / (‖ΔW‖ ‖V‖) can be from the file's because of what it leaves out of V. `rank`: at most that of
    /// ΔW.
    ///
    /// That is ⟨(I − UUᵀ) ΔW, X⟩ with X = (I − UUᵀ) V, of norms ‖X‖₂ ≤ sqrt(ρ ‖V‖) and ‖X‖_F = sqrt(‖V‖² − Σ σ²), so at most
    /// min(√rank ‖X‖₂, ‖X‖_F) ‖(I − UUᵀ) ΔW‖_F.
    pub fn signed_bound(&self, products: &Products, rank: usize) -> f64 {
        if self.v_norm == 0.0 {
            return 0.0;
        }
        let rank = rank.min(self.d_out).min(self.d_in) as f64;
        let rest = products.of_square(products.square - products.span_square).unwrap_or(0.0);
        (rank * self.residual / self.v_norm).sqrt().min((1.0 - self.energy()).max(0.0).sqrt()) * rest
    }

    /// Share of ‖V‖_F² that the file holds.
    pub fn energy(&self) -> f64 {
        let held: f64 = self.eigenvalues.iter().sum();
        if self.v_norm > 0.0 { (held / self.v_norm).min(1.0) } else { 1.0 }
    }
}

impl Products {
    /// ‖C ΔW‖ / ‖ΔW‖; none where ΔW = 0.
    pub fn c_share(&self) -> Option<f64> {
        self.of_square(self.c_square)
    }

    /// ‖(I − C) ΔW‖ / ‖ΔW‖
    pub fn c_rest(&self) -> Option<f64> {
        self.of_square(self.square - 2.0 * self.c_inner + self.c_square)
    }

    /// ‖P ΔW‖ / ‖ΔW‖
    pub fn p_share(&self) -> Option<f64> {
        self.of_square(self.p_square.min(self.square))
    }

    /// ‖(I − P) ΔW‖ / ‖ΔW‖
    pub fn p_rest(&self) -> Option<f64> {
        self.of_square(self.square - self.p_square)
    }

    fn of_square(&self, part: f64) -> Option<f64> {
        (self.square > 0.0).then(|| (part.max(0.0) / self.square).sqrt())
    }

    /// ⟨C ΔW, ΔW⟩ / (‖C ΔW‖ ‖ΔW‖); none where C ΔW = 0.
    pub fn cosine(&self) -> Option<f64> {
        let norms = (self.c_square * self.square).sqrt();
        (norms > 0.0).then(|| (self.c_inner / norms).clamp(0.0, 1.0))
    }
}

/// ⟨x_i, y_i⟩ of every row, accumulated in f64.
fn inner(x: &Tensor, y: &Tensor) -> Result<Vec<f64>> {
    let width = x.dim(1)?;
    let (x, y) = (x.flatten_all()?.to_vec1::<f32>()?, y.flatten_all()?.to_vec1::<f32>()?);
    let rows = x.chunks(width.max(1)).zip(y.chunks(width.max(1)));
    Ok(rows.map(|(x, y)| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()).collect())
}

fn sum(x: &Tensor) -> Result<f64> {
    Ok(x.sum_all()?.to_scalar()?)
}

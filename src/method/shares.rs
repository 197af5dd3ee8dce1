//! How an update ΔW relates to a module's direction, without forming ΔW, C or a projector. All reported shares are
//! these: in `asft inspect`, `asft project`, `modules.jsonl` and `run.json`. They are always taken with C and V
//! themselves, as in the direction file, never with what `asft.projector` uses in C's place.
//!
//! C = V Vᵀ / ‖V‖_F ≈ U diag(c) Uᵀ, V ≈ U diag(σ) Rᵀ with σ_i = sqrt(c_i ‖V‖_F), and P = U_p U_pᵀ, the projector on the
//! fewest leading columns of U that hold 0.9 of ‖V‖_F². For LoRA, ΔW = s B A, with M = UᵀB, N = A R and S = A Aᵀ:
//!
//! ```text
//! ‖ΔW‖² = s² ⟨BᵀB, S⟩             ‖C ΔW‖² = s² ⟨Mᵀ diag(c²) M, S⟩      ⟨C ΔW, ΔW⟩ = s² ⟨Mᵀ diag(c) M, S⟩
//! ‖P ΔW‖² = s² ⟨M_pᵀ M_p, S⟩      ⟨ΔW, V⟩ = s Σ_i σ_i (M N)_ii
//! ```
//!
//! For an update known as a whole, the same with H = UᵀΔW [k, d_in] in place of the products with A.
//!
//! Shapes: B [d_out, r], A [r, d_in], U [d_out, k], R [d_in, k], c [k]. Products of LoRA factors are f64 if the device
//! has it (all but Metal).

use super::options::DEFAULT_SUBSPACE_ENERGY;
use super::spectral::Direction;
use crate::ops::scalar::{Scalar, wide};
use crate::ops::sum::{square_sum, total};
use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};

/// Elements widened to f64 at a time when large matrices are multiplied row by row.
const WIDENED: usize = 1 << 20;

/// The numbers from which every share of an update follows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Products {
    /// ‖ΔW‖_F²
    pub square: f64,
    /// Whether there is a direction with V ≠ 0; if not, all numbers below are 0 and mean nothing.
    pub directed: bool,
    /// ‖C ΔW‖_F²
    pub c_square: f64,
    /// ⟨C ΔW, ΔW⟩
    pub c_inner: f64,
    /// ‖P ΔW‖_F²
    pub p_square: f64,
    /// ‖UᵀΔW‖_F²
    pub span_square: f64,
    /// ⟨ΔW, V⟩; also 0 if R was not read.
    pub v_inner: f64,
}

/// The columns of P, and the share of ‖V‖_F² that they hold: the fewest with 0.9, or else all that are kept.
pub fn subspace(direction: &Direction) -> (usize, f64) {
    let k = direction.leading(DEFAULT_SUBSPACE_ENERGY).unwrap_or(direction.rank());
    (k, direction.energy_of(k))
}

impl Products {
    /// The products of ΔW = s B A, with `scale` = s; without a direction, only the norm. All on one device.
    ///
    /// # Errors
    /// A direction of another shape.
    pub fn lora(direction: Option<&Direction>, a: &Tensor, b: &Tensor, scale: f64) -> Result<Self> {
        let direction = fitting(direction, (b.dim(0)?, a.dim(1)?))?;
        let wide = wide(a.device());
        let (a, b) = (a.to_dtype(wide)?, b.to_dtype(wide)?);
        let s = a.matmul(&a.t()?)?;
        let scale_square = scale * scale;
        let square = scale_square * Scalar::of((b.t()?.matmul(&b)? * &s)?.sum_all()?)?.read()?;
        let Some(direction) = direction else { return Ok(Self { square, ..Self::default() }) };
        let m = direction.basis.to_dtype(wide)?.t()?.matmul(&b)?; // [k, r]
        // Row i of both: ‖(UᵀΔW)_i‖² and (UᵀΔW)_i · R_i.
        let row_squares = (read(&(m.matmul(&s)? * &m)?.sum(1)?)?, scale_square);
        let row_inner = direction.right.as_ref().map(|right| {
            let n = a.matmul(&right.to_dtype(wide)?)?; // [r, k]
            read(&(&m * &n.t()?)?.sum(1)?)
        });
        Ok(Self::combine(direction, square, row_squares, (row_inner.transpose()?, scale)))
    }

    /// The products of ΔW [d_out, d_in], f32; without a direction, only the norm. UᵀΔW is computed in f32, sums are
    /// f64.
    ///
    /// # Errors
    /// A direction of another shape.
    pub fn full(direction: Option<&Direction>, delta_w: &Tensor) -> Result<Self> {
        let direction = fitting(direction, delta_w.dims2()?)?;
        let square = square_sum(delta_w)?.read()?;
        let Some(direction) = direction else { return Ok(Self { square, ..Self::default() }) };
        let h = direction.basis.t()?.matmul(delta_w)?; // [k, d_in]
        let inner = direction.right.as_ref().map(|right| row_products(&h, &right.t()?)).transpose()?;
        Ok(Self::combine(direction, square, (row_products(&h, &h)?, 1.0), (inner, 1.0)))
    }

    /// From ‖(UᵀΔW)_i‖² and (UᵀΔW)_i · R_i for every i, each paired with a common factor.
    fn combine(
        direction: &Direction,
        square: f64,
        (row_squares, of_squares): (Vec<f64>, f64),
        (row_inner, of_inner): (Option<Vec<f64>>, f64),
    ) -> Self {
        let mut products = Self { square, directed: true, ..Self::default() };
        let (p, _) = subspace(direction);
        for (i, (&c, row)) in direction.eigenvalues.iter().zip(row_squares).enumerate() {
            let (c, row) = (f64::from(c), row * of_squares);
            products.c_square += c * c * row;
            products.c_inner += c * row;
            products.p_square += if i < p { row } else { 0.0 };
            products.span_square += row;
        }
        let inner = row_inner.unwrap_or_default().into_iter().zip(direction.sigma());
        products.v_inner = total(inner.map(|(inner, sigma)| sigma * (inner * of_inner)));
        products
    }

    /// ‖ΔW‖_F
    pub fn norm(&self) -> f64 {
        self.square.max(0.0).sqrt()
    }

    /// ‖C ΔW‖ / ‖ΔW‖; like every share, `None` if V = 0 or ΔW = 0.
    pub fn aligned(&self) -> Option<f64> {
        self.share(self.c_square)
    }

    /// ‖(I − C) ΔW‖ / ‖ΔW‖. As C is not a projector, this and [`Products::aligned`] need not add up to anything.
    pub fn orthogonal(&self) -> Option<f64> {
        self.share(self.orthogonal_square())
    }

    /// ‖(I − C) ΔW‖²
    pub fn orthogonal_square(&self) -> f64 {
        self.square - 2.0 * self.c_inner + self.c_square
    }

    /// ‖P ΔW‖ / ‖ΔW‖
    pub fn subspace_aligned(&self) -> Option<f64> {
        self.share(self.p_square.min(self.square))
    }

    /// ‖(I − P) ΔW‖ / ‖ΔW‖
    pub fn subspace_orthogonal(&self) -> Option<f64> {
        self.share(self.square - self.p_square)
    }

    fn share(&self, part: f64) -> Option<f64> {
        (self.directed && self.square > 0.0).then(|| (part.max(0.0) / self.square).sqrt())
    }

    /// cos(C ΔW, ΔW) = ⟨C ΔW, ΔW⟩ / (‖C ΔW‖ ‖ΔW‖); `None` if C ΔW = 0.
    pub fn cosine(&self) -> Option<f64> {
        let norms = (self.c_square * self.square).sqrt();
        (norms > 0.0).then(|| (self.c_inner / norms).clamp(0.0, 1.0))
    }

    /// ⟨ΔW, V⟩ / (‖ΔW‖ ‖V‖), below 0 if the update un-aligns; also `None` if R was not read.
    pub fn signed(&self, direction: &Direction) -> Option<f64> {
        let norms = self.square.sqrt() * f64::from(direction.v_norm);
        (norms > 0.0 && direction.right.is_some()).then(|| self.v_inner / norms)
    }

    /// How far [`Products::cosine`] can be off because of what `direction` leaves out of C.
    ///
    /// With ρ the residual, a = ‖Ĉ ΔW‖ / ‖ΔW‖ and ‖C − Ĉ‖₂ ≤ ρ, ⟨CΔW, ΔW⟩ / ‖ΔW‖² and ‖CΔW‖ / ‖ΔW‖ are each off by at
    /// most ρ; so their quotient is off by at most ρ (1 + cos) / (a − ρ).
    pub fn cosine_bound(&self, direction: &Direction) -> f64 {
        let (share, residual) = (self.aligned().unwrap_or(0.0), f64::from(direction.residual));
        let cosine = self.cosine().unwrap_or(0.0);
        if share > residual { (residual * (1.0 + cosine) / (share - residual)).min(1.0) } else { 1.0 }
    }

    /// How far [`Products::signed`] can be off because of what `direction` leaves out of V. `rank`: an upper bound on
    /// the rank of ΔW.
    ///
    /// The missing part is ⟨(I − UUᵀ) ΔW, X⟩ with X = (I − UUᵀ) V, whose norms are ‖X‖₂ ≤ sqrt(ρ ‖V‖) and ‖X‖_F =
    /// sqrt(‖V‖² − Σ σ²), so at most min(√rank ‖X‖₂, ‖X‖_F) ‖(I − UUᵀ) ΔW‖_F.
    pub fn signed_bound(&self, direction: &Direction, rank: usize) -> f64 {
        if direction.v_norm == 0.0 {
            return 0.0;
        }
        let rank = rank.min(direction.shape.0).min(direction.shape.1) as f64;
        let rest = self.share(self.square - self.span_square).unwrap_or(0.0);
        let spectral = (rank * f64::from(direction.residual) / f64::from(direction.v_norm)).sqrt();
        spectral.min((1.0 - direction.energy()).max(0.0).sqrt()) * rest
    }
}

/// The direction, if there is one with V ≠ 0, for an update [d_out, d_in].
fn fitting(direction: Option<&Direction>, (d_out, d_in): (usize, usize)) -> Result<Option<&Direction>> {
    let Some(direction) = direction else { return Ok(None) };
    let (rows, columns) = direction.shape;
    ensure!((d_out, d_in) == (rows, columns), "the update is [{d_out}, {d_in}], the direction [{rows}, {columns}]");
    Ok((direction.rank() > 0).then_some(direction))
}

/// ⟨x_i, y_i⟩ of every row, accumulated in f64; a few rows at a time, so that the wide copies stay small.
fn row_products(x: &Tensor, y: &Tensor) -> Result<Vec<f64>> {
    let (rows, width) = x.dims2()?;
    let (block, wide) = ((WIDENED / width.max(1)).max(1), wide(x.device()));
    let sums = (0..rows).step_by(block).map(|start| {
        let part = |x: &Tensor| x.narrow(0, start, block.min(rows - start))?.to_dtype(wide);
        (part(x)? * part(y)?)?.sum(1)
    });
    read(&Tensor::cat(&sums.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
}

fn read(x: &Tensor) -> Result<Vec<f64>> {
    Ok(x.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1()?)
}

//! How an update ΔW relates to a module's direction, without forming ΔW, C or a projector. All reported shares are
//! these: in `asft inspect`, `asft project`, `modules.jsonl` and `run.json`. They are always taken with C and V
//! themselves, as in the direction file, never with what `asft.projector` uses in C's place.
//!
//! C = V Vᵀ / ‖V‖_F ≈ U diag(c) Uᵀ, V ≈ U diag(σ) Rᵀ with σ_i = sqrt(c_i ‖V‖_F), and P = U_p U_pᵀ, the projector on the
//! fewest leading columns of U that hold 0.9 of ‖V‖_F². For LoRA, ΔW = s B A, with M = UᵀB, N = A R and S = A Aᵀ:
//!
//! ```text
//! ‖ΔW‖² = s² ⟨BᵀB, S⟩             ‖C ΔW‖² = s² ⟨Mᵀ diag(c²) M, S⟩      ⟨C ΔW, ΔW⟩ = s² ⟨Mᵀ diag(c) M, S⟩
//! ‖P ΔW‖² = s² ⟨M_pᵀ M_p, S⟩      ⟨ΔW, V⟩ = s Σ_i σ_i (M N)_ii     ‖ΔW Vᵀ‖² = s² Σ_i σ_i² (Nᵀ BᵀB N)_ii
//! ```
//!
//! For an update known as a whole, the same with H = UᵀΔW [k, d_in] and ΔW R [d_out, k] in place of the products with A and B.
//!
//! Shapes: B [d_out, r], A [r, d_in], U [d_out, k], R [d_in, k], c [k]. Products of LoRA factors are f64 if the device
//! has it (all but Metal).

use super::options::DEFAULT_SUBSPACE_ENERGY;
use super::spectral::{Direction, Keep};
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
    /// (d_in / ‖V‖²) ‖ΔW Vᵀ‖²; also 0 if R was not read.
    pub input_square: f64,
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
        let by_rows = direction.right.as_ref().map(|right| {
            let n = a.matmul(&right.to_dtype(wide)?)?; // [r, k]
            let squares = (b.t()?.matmul(&b)?.matmul(&n)? * &n)?.sum(0)?;
            Ok::<_, anyhow::Error>(ByRows { inner: read(&(&m * &n.t()?)?.sum(1)?)?, squares: read(&squares)? })
        });
        Ok(Self::combine(direction, square, row_squares, (by_rows.transpose()?, scale)))
    }

    /// The products of ΔW [d_out, d_in], f32; without a direction, only the norm. UᵀΔW is computed in f32, sums are
    /// f64: for numbers that a run reports as it goes. [`Products::full_wide`] is the exact one.
    ///
    /// # Errors
    /// A direction of another shape.
    pub fn full(direction: Option<&Direction>, delta_w: &Tensor) -> Result<Self> {
        let direction = fitting(direction, delta_w.dims2()?)?;
        let square = square_sum(delta_w)?.read()?;
        let Some(direction) = direction else { return Ok(Self { square, ..Self::default() }) };
        let h = direction.basis.t()?.matmul(delta_w)?; // [k, d_in]
        let by_rows = direction.right.as_ref().map(|right| {
            let inputs = delta_w.matmul(right)?.t()?; // [k, d_out]
            Ok::<_, anyhow::Error>(ByRows {
                inner: row_products(&h, &right.t()?)?,
                squares: row_products(&inputs, &inputs)?,
            })
        });
        Ok(Self::combine(direction, square, (row_products(&h, &h)?, 1.0), (by_rows.transpose()?, 1.0)))
    }

    /// As [`Products::full`], with UᵀΔW in f64 too, some columns at a time; on the CPU.
    ///
    /// # Errors
    /// A direction of another shape.
    pub fn full_wide(direction: Option<&Direction>, delta_w: &Tensor) -> Result<Self> {
        let (d_out, d_in) = delta_w.dims2()?;
        let direction = fitting(direction, (d_out, d_in))?;
        let square = square_sum(delta_w)?.read()?;
        let Some(direction) = direction else { return Ok(Self { square, ..Self::default() }) };
        let (k, basis_t) = (direction.rank(), direction.basis.to_dtype(DType::F64)?.t()?);
        let right_t = direction.right.as_ref().map(|right| right.t()).transpose()?;
        let (mut squares, mut inner) = (vec![0f64; k], vec![0f64; k]);
        let mut inputs = Tensor::zeros((k, d_out), DType::F64, delta_w.device())?; // (ΔW R)ᵀ
        let add = |to: &mut [f64], of: &[f64]| to.iter_mut().zip(of).for_each(|(to, of)| *to += of);
        let width = (WIDENED / d_out.max(1)).max(1);
        for start in (0..d_in).step_by(width) {
            let part = |x: &Tensor| x.narrow(1, start, width.min(d_in - start))?.to_dtype(DType::F64);
            let update = part(delta_w)?.contiguous()?;
            let h = basis_t.matmul(&update)?; // [k, width]
            add(&mut squares, &read(&h.sqr()?.sum(1)?)?);
            if let Some(right_t) = &right_t {
                let right_t = part(right_t)?;
                inputs = (inputs + right_t.contiguous()?.matmul(&update.t()?)?)?;
                add(&mut inner, &read(&(h * right_t)?.sum(1)?)?);
            }
        }
        let by_rows = right_t.map(|_| Ok::<_, anyhow::Error>(ByRows { inner, squares: read(&inputs.sqr()?.sum(1)?)? }));
        Ok(Self::combine(direction, square, (squares, 1.0), (by_rows.transpose()?, 1.0)))
    }

    /// From ‖(UᵀΔW)_i‖² and what is known by V's rows, with the factor that squares have and ΔW has, for every i.
    fn combine(
        direction: &Direction,
        square: f64,
        (row_squares, of_squares): (Vec<f64>, f64),
        (by_rows, of_inner): (Option<ByRows>, f64),
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
        let ByRows { inner, squares } = by_rows.unwrap_or_default();
        let inner = inner.into_iter().zip(direction.sigma());
        products.v_inner = total(inner.map(|(inner, sigma)| sigma * (inner * of_inner)));
        let squares = squares.into_iter().zip(direction.sigma());
        let of_one = direction.shape.1 as f64 / f64::from(direction.v_norm).powi(2);
        products.input_square =
            total(squares.map(|(square, sigma)| sigma * sigma * square * (of_inner * of_inner * of_one)));
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

    /// √d_in ‖ΔW Vᵀ‖ / (‖ΔW‖ ‖V‖), which is 1 for an update without preference among its inputs; also `None` if R was not read.
    pub fn input(&self, direction: &Direction) -> Option<f64> {
        self.share(self.input_square).filter(|_| direction.right.is_some())
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

    /// How far [`Products::signed`] can be off, for products in f64: because of what `direction`, made with `keep`, leaves
    /// out of V, and because its factors are rounded to f32. `rank`: an upper bound on the rank of ΔW.
    ///
    /// All below is in units of ‖ΔW‖ ‖V‖; U, R, σ are the stored factors, u = 2⁻²⁴, δ = ‖UᵀU − I‖_F, which is measured, and
    /// Q the exact projector on what is orthogonal to U's columns. V is split by I = Q + (I − Q − UUᵀ) + UUᵀ:
    ///
    /// ```text
    /// left out    ⟨Q ΔW, Q V⟩ ≤ ‖Q ΔW‖_F min(√rank ‖Q V‖₂, ‖Q V‖_F)
    ///             ‖Q V‖₂² ≤ ρ / ‖V‖                 as Q C Q = Q (C − U diag(c) Uᵀ) Q, of norm ≤ ρ, the residual
    ///             ‖Q V‖_F² ≤ 1 − (1 − δ) Σ c / ‖V‖    ‖Q ΔW‖_F² ≤ 1 − (1 − δ) ‖UᵀΔW‖²
    /// not quite orthonormal    |⟨(I − Q − UUᵀ) ΔW, V⟩| ≤ δ
    /// rounded     |⟨UᵀΔW, VᵀU − R diag(σ)⟩| ≤ ‖UᵀΔW‖ η
    /// ```
    ///
    /// R diag(σ) is VᵀU rounded to f32 twice, and σ once, so that η = 3u if the product was summed in f64. Where it was
    /// summed in f32, η has γ √k more, with γ = d_out u / (1 − d_out u): a sum of d_out products is off by γ |U|ᵀ|V|, and
    /// ‖ |U|ᵀ|V| ‖_F ≤ √k. ‖V‖, and V and ΔW as differences of weights, are rounded once each: 3u more.
    ///
    /// # Errors
    /// Those of the tensors.
    pub fn signed_bound(&self, direction: &Direction, rank: usize, keep: Keep) -> Result<f64> {
        if direction.v_norm == 0.0 || self.square <= 0.0 {
            return Ok(0.0);
        }
        let (d_out, d_in) = direction.shape;
        let (unit, delta) = (f64::from(f32::EPSILON) / 2.0, departure(&direction.basis)?);
        let gamma = d_out as f64 * unit / (1.0 - d_out as f64 * unit);
        let summed = if keep.sums_in_f32(d_out.min(d_in)) { gamma * (direction.rank() as f64).sqrt() } else { 0.0 };
        let eta = 3.0 * unit + summed;
        let span = self.span_square / self.square;
        let spectral = rank.min(d_out).min(d_in) as f64 * f64::from(direction.residual) / f64::from(direction.v_norm);
        // Σ c is itself ‖VᵀU‖² as rounded.
        let frobenius = 1.0 - (1.0 - delta - 2.0 * eta) * direction.energy();
        let left_out = (1.0 - (1.0 - delta) * span).max(0.0) * spectral.min(frobenius.max(0.0));
        Ok(left_out.sqrt() + delta + span.sqrt() * eta + 3.0 * unit)
    }
}

/// What is known of an update by V's rows, for every i: (UᵀΔW)_i · R_i, and ‖ΔW R_i‖².
#[derive(Default)]
struct ByRows {
    inner: Vec<f64>,
    squares: Vec<f64>,
}

/// ‖UᵀU − I‖_F
fn departure(basis: &Tensor) -> Result<f64> {
    let basis = basis.to_dtype(DType::F64)?;
    let gram = basis.t()?.matmul(&basis)?;
    Ok((gram - Tensor::eye(basis.dim(1)?, DType::F64, basis.device())?)?.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt())
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

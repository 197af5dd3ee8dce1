//! A positive semidefinite matrix Σ = Σ_j x_j x_jᵀ whose terms come one after another, in few columns.
//!
//! Held is Y = Σ Ω for random orthonormal columns Ω, not Σ. Nyström's approximation from it is
//!
//! ```text
//! Σ ≈ Y (Ωᵀ Y)⁻¹ Yᵀ = E Eᵀ        E = Y L⁻ᵀ,  Ωᵀ Y = L Lᵀ
//! ```
//!
//! (Tropp et al., arXiv 1706.05736, with their shift: Y + ν Ω for Y, ν at rounding level, so that L exists). It is exact up to ν
//! where Σ has no more directions than Ω has columns, and otherwise leaves out what Ω does not see, mostly the smallest directions:
//! it never exceeds Σ + ν I.
//!
//! Shapes: x [n, d], Ω, Y and E [d, k]; sums are f64 if the device has it (all but Metal).

use super::dense::multiply;
use super::eigen::eigen_in_place;
use crate::ops::scalar::wide;
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::{Mat, Par, Side};

/// Y so far, and Σ's trace.
pub struct Sketch {
    /// Ω
    test: Tensor,
    /// Y
    image: Tensor,
    /// Σ ‖x‖² [1]
    trace: Tensor,
}

/// E on the CPU, f32, and Σ's trace.
pub struct Factor {
    pub columns: Tensor,
    pub trace: f64,
}

impl Sketch {
    /// Of the zero matrix, with Ω's columns `test`, f32.
    pub fn new(test: &Tensor, device: &Device) -> Result<Self> {
        let test = test.to_device(device)?.to_dtype(wide(device))?;
        Ok(Self { image: test.zeros_like()?, trace: Tensor::zeros(1, wide(device), device)?, test })
    }

    /// Adds Σ_j x_j x_jᵀ over the rows of x.
    pub fn add(&mut self, x: &Tensor) -> Result<()> {
        let x = x.to_dtype(self.test.dtype())?;
        self.image = (&self.image + x.t()?.matmul(&x.matmul(&self.test)?)?)?;
        self.trace = (&self.trace + x.sqr()?.sum_all()?.reshape(1)?)?;
        Ok(())
    }

    /// E.
    ///
    /// # Errors
    /// A matrix that is not finite.
    pub fn factor(&self) -> Result<Factor> {
        let [test, image] = [&self.test, &self.image].map(on_host);
        let (test, image) = (test?, image?);
        let trace = on_host(&self.trace.unsqueeze(0)?)?[(0, 0)];
        anyhow::ensure!(trace.is_finite() && image.norm_l2().is_finite(), "the sum of squares is {trace}");
        let rounding = if self.test.dtype() == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
        let mut shift = 10.0 * rounding * image.norm_l2().max(f64::MIN_POSITIVE);
        // Rounding may ask for a larger one than the theory does.
        for _ in 0..8 {
            let shifted = &image + &test * faer::Scale(shift);
            let core = test.transpose() * &shifted;
            let core = (&core + core.transpose()) * faer::Scale(0.5);
            if let Ok(cholesky) = core.llt(Side::Lower) {
                // Eᵀ = L⁻¹ Yᵀ
                let mut columns = shifted.transpose().to_owned();
                solve_lower_triangular_in_place(cholesky.L(), columns.as_mut(), Par::Seq);
                let (k, d) = (columns.nrows(), columns.ncols());
                let values: Vec<f32> =
                    (0..d).flat_map(|i| (0..k).map(move |j| (j, i))).map(|at| columns[at] as f32).collect();
                return Ok(Factor { columns: Tensor::from_vec(values, (d, k), &Device::Cpu)?, trace });
            }
            shift *= 10.0;
        }
        anyhow::bail!("the sum of squares is not positive semidefinite")
    }
}

/// Eigenvalues below this share of the largest are rounding, or what the shift has left.
const ROUNDING: f64 = 1e-6;

impl Factor {
    /// Q: [d, n], the leading eigenvectors of E Eᵀ: as few as hold the share `energy` of Σ's trace, or else all above rounding. Returns
    /// them on the CPU, f32, with the share that they hold.
    pub fn leading(&self, energy: f64) -> Result<(Tensor, f64)> {
        let columns = on_host(&self.columns)?;
        // Eᵀ E has the eigenvalues of E Eᵀ, and its eigenvectors are Eᵀ Q over their roots.
        let gram = multiply(columns.transpose(), columns.as_ref(), Par::Seq);
        let (values, vectors) = eigen_in_place(gram, Par::Seq)?;
        let k = values.len();
        let least = ROUNDING * values.last().copied().unwrap_or(0.0);
        let (mut n, mut held) = (0, 0.0);
        for value in values.iter().rev().copied() {
            if value <= least || held >= energy * self.trace {
                break;
            }
            (n, held) = (n + 1, held + value);
        }
        // Ascending, so that the leading ones are the last.
        let scaled = Mat::from_fn(k, n, |i, j| vectors[(i, k - 1 - j)] / values[k - 1 - j].sqrt());
        let q = multiply(columns.as_ref(), scaled.as_ref(), Par::Seq);
        let d = q.nrows();
        let rows: Vec<f32> = (0..d).flat_map(|i| (0..n).map(move |j| (i, j))).map(|at| q[at] as f32).collect();
        let share = if self.trace > 0.0 { held / self.trace } else { 1.0 };
        Ok((Tensor::from_vec(rows, (d, n), &Device::Cpu)?, share))
    }
}

/// Widened only there: a device may lack f64.
fn on_host(x: &Tensor) -> Result<Mat<f64>> {
    let (rows, columns) = x.dims2()?;
    let values = x
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F64)?
        .flatten_all()?
        .to_vec1::<f64>()
        .context("reading the sketch")?;
    Ok(Mat::from_fn(rows, columns, |i, j| values[i * columns + j]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::random::orthonormal;
    use crate::ops::testing::random;

    /// The largest entry of E Eᵀ − Σ over the largest of Σ, and whether the diagonal stays within Σ's.
    fn error(n: usize, d: usize, k: usize) -> (f64, bool) {
        // Added in two parts of unequal size.
        let x = random(&[n, d], 3);
        let mut sketch = Sketch::new(&orthonormal(d, k, "sketch").unwrap(), &Device::Cpu).unwrap();
        sketch.add(&x.narrow(0, 0, n / 3).unwrap()).unwrap();
        sketch.add(&x.narrow(0, n / 3, n - n / 3).unwrap()).unwrap();
        let Factor { columns, trace } = sketch.factor().unwrap();
        let exact = x.t().unwrap().matmul(&x).unwrap().to_vec2::<f32>().unwrap();
        let found = columns.matmul(&columns.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
        let diagonal: f64 = (0..d).map(|i| f64::from(exact[i][i])).sum();
        assert!((trace / diagonal - 1.0).abs() < 1e-6);
        let pairs = || exact.iter().flatten().zip(found.iter().flatten());
        let most = pairs().map(|(exact, _)| exact.abs()).fold(0.0, f32::max);
        let off = pairs().map(|(exact, found)| (exact - found).abs()).fold(0.0, f32::max);
        let below = (0..d).all(|i| found[i][i] <= exact[i][i] * 1.0001);
        (f64::from(off / most), below)
    }

    #[test]
    fn a_sketch_with_enough_columns_is_exact() {
        // As many as rows; as many as directions; more.
        for (n, d, k) in [(60, 24, 24), (7, 24, 7), (7, 24, 12)] {
            let (error, below) = error(n, d, k);
            assert!(error < 1e-5 && below, "{n} {d} {k}: {error}");
        }
    }

    #[test]
    fn a_sketch_with_few_columns_stays_below() {
        let (error, below) = error(60, 24, 6);
        assert!(error > 1e-3 && error < 1.0 && below, "{error}");
    }

    #[test]
    fn leading_eigenvectors_hold_what_they_say() {
        let (n, d) = (9, 24);
        let x = random(&[n, d], 5);
        let mut sketch = Sketch::new(&orthonormal(d, 16, "leading").unwrap(), &Device::Cpu).unwrap();
        sketch.add(&x).unwrap();
        let factor = sketch.factor().unwrap();
        let mut before = 0;
        for energy in [0.2, 0.5, 0.9, 1.0] {
            let (q, held) = factor.leading(energy).unwrap();
            let k = q.dim(1).unwrap();
            assert!(k > before && (held >= energy * 0.999_999) && held < 1.000_01, "{energy} {k} {held}");
            before = k;
            let gram = q.t().unwrap().matmul(&q).unwrap();
            crate::ops::testing::close(&gram, &Tensor::eye(k, DType::F32, &Device::Cpu).unwrap(), 1e-6);
            // ‖x Q‖² is what they hold of ‖x‖²; one less would not do.
            let square = |x: &Tensor| f64::from(x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
            let share = |k: usize| square(&x.matmul(&q.narrow(1, 0, k).unwrap()).unwrap()) / square(&x);
            assert!((share(k) - held).abs() < 1e-5 && (k == 1 || share(k - 1) < energy), "{energy} {k}");
        }
        assert_eq!(before, n);
        let (none, held) = Factor { columns: factor.columns.zeros_like().unwrap(), trace: 0.0 }.leading(0.9).unwrap();
        assert_eq!((none.dims(), held), (&[d, 0][..], 1.0));
    }
}

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
}

//! Symmetric f64 matrices that are factored repeatedly: definiteness by Cholesky (faer's), leading eigenpairs, norms.

use super::krylov::{self, Pairs, Wanted};
use crate::vectors::vectorised;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::traits::RealField;
use faer::{Mat, Par, Side, Spec};
use rayon::prelude::*;

/// Powers in a rough estimate of a norm.
const POWERS: usize = 6;
/// Residual of the eigenpair behind a good estimate of the norm, relative to the rough estimate.
const NEAR: f64 = 5e-3;
/// Rows and columns of a tile that is transposed at once.
const TILE: usize = 64;
/// Columns of a block in a product with a vector.
const COLUMNS: usize = 128;
/// Below this size a partial solver has no room to work in.
pub const SMALL: usize = 128;

/// A symmetric matrix that is factored repeatedly: its lower triangle, packed by columns, and a working copy.
pub struct Symmetric {
    packed: Vec<f64>,
    work: Mat<f64>,
}

impl Symmetric {
    pub fn from_lower(work: Mat<f64>) -> Self {
        let n = work.nrows();
        let mut packed = Vec::with_capacity(n * (n + 1) / 2);
        for j in 0..n {
            packed.extend_from_slice(&work.col_as_slice(j)[j..]);
        }
        Self { packed, work }
    }

    /// Without the working copy.
    pub fn into_packed(self) -> Packed {
        Packed { n: self.work.nrows(), values: self.packed }
    }

    pub fn dim(&self) -> usize {
        self.work.nrows()
    }

    pub fn frobenius(&self) -> f64 {
        let mut rest = self.packed.as_slice();
        let mut sum = 0.0;
        for j in 0..self.dim() {
            let (column, tail) = rest.split_at(self.dim() - j);
            sum += column[0] * column[0] + 2.0 * column[1..].iter().map(|x| x * x).sum::<f64>();
            rest = tail;
        }
        sum.sqrt()
    }

    /// Working copy := `sign` times the matrix + `shift` I, lower triangle only.
    fn load(&mut self, sign: f64, shift: f64) {
        let n = self.dim();
        let mut rest = self.packed.as_slice();
        for j in 0..n {
            let (column, tail) = rest.split_at(n - j);
            let target = &mut self.work.col_as_slice_mut(j)[j..];
            for (target, value) in target.iter_mut().zip(column) {
                *target = sign * value;
            }
            target[0] += shift;
            rest = tail;
        }
    }

    /// Whether `sign` times the matrix + `shift` I has a Cholesky factor; the working copy then holds it.
    pub fn has_cholesky(&mut self, sign: f64, shift: f64, par: Par) -> bool {
        self.load(sign, shift);
        let mut memory =
            MemBuffer::new(llt::factor::cholesky_in_place_scratch::<f64>(self.dim(), par, Spec::default()));
        let stack = MemStack::new(&mut memory);
        llt::factor::cholesky_in_place(self.work.as_mut(), Default::default(), par, stack, Spec::default()).is_ok()
    }

    /// The working copy, whose lower triangle holds what was last loaded or factored.
    pub fn into_work(self) -> Mat<f64> {
        self.work
    }

    pub fn trace(&self) -> f64 {
        let mut place = 0;
        (0..self.dim())
            .map(|j| {
                let value = self.packed[place];
                place += self.dim() - j;
                value
            })
            .sum()
    }

    /// The largest ‖A x‖ / ‖x‖ over a few powers of a positive semidefinite A applied to a vector: below A's norm, but
    /// seldom by half.
    pub fn rough_norm(&self) -> f64 {
        let n = self.dim();
        // An irregular vector, lest it be orthogonal to what it should find.
        let mut x: Vec<f64> = (0..n).map(|i| 1.0 + 0.5 * (i as f64 * 2.4).sin()).collect();
        let mut norm = 0.0;
        for _ in 0..POWERS {
            let length = x.iter().map(|x| x * x).sum::<f64>().sqrt();
            if length == 0.0 {
                break;
            }
            x.iter_mut().for_each(|x| *x /= length);
            x = self.apply(&x);
            norm = x.iter().map(|x| x * x).sum::<f64>().sqrt().max(norm);
        }
        norm
    }

    /// A x: a part for each block of columns, whose number no thread changes, added in order.
    fn apply(&self, x: &[f64]) -> Vec<f64> {
        let n = self.dim();
        let starts: Vec<usize> = (0..n).step_by(COLUMNS).collect();
        let parts: Vec<Vec<f64>> = starts
            .into_par_iter()
            .map(|first| {
                let mut y = vec![0.0; n - first];
                // Columns before this one have n, n − 1, ... entries.
                let mut rest = &self.packed[first * n - first * first.saturating_sub(1) / 2..];
                for j in first..(first + COLUMNS).min(n) {
                    let (column, tail) = rest.split_at(n - j);
                    add_column(column, &x[j..], &mut y[j - first..]);
                    rest = tail;
                }
                y
            })
            .collect();
        let mut y = vec![0.0; n];
        for part in parts {
            let first = n - part.len();
            y[first..].iter_mut().zip(part).for_each(|(y, part)| *y += part);
        }
        y
    }

    /// The wanted eigenpairs, or none if the partial solver does not find them.
    pub fn leading(&mut self, wanted: Wanted, tolerance: f64, par: Par) -> Option<Pairs> {
        let n = self.dim();
        self.load(1.0, 0.0);
        // In tiles, as one side of a transpose strides over memory.
        for (top, left) in (0..n).step_by(TILE).flat_map(|top| (0..=top).step_by(TILE).map(move |left| (top, left))) {
            for i in top..(top + TILE).min(n) {
                for j in left..(left + TILE).min(i) {
                    self.work[(j, i)] = self.work[(i, j)];
                }
            }
        }
        krylov::leading(self.work.as_ref(), wanted, tolerance, par)
    }

    /// A close estimate of the spectral norm from below.
    pub fn norm_estimate(&mut self, par: Par) -> f64 {
        let frobenius = self.frobenius();
        if self.dim() > SMALL {
            let near = NEAR * self.rough_norm();
            return self.leading(Wanted::Count(1), near, par).map_or(frobenius, |found| found.values[0].abs());
        }
        self.load(1.0, 0.0);
        match self.work.self_adjoint_eigenvalues(Side::Lower) {
            Ok(values) => values.iter().fold(0.0, |most, value| most.max(value.abs())),
            Err(_) => frobenius,
        }
    }
}

/// Adds to y what a column of a lower triangle and the row that it stands for contribute to a symmetric product with x; all three from the
/// diagonal on.
fn add_column(column: &[f64], x: &[f64], y: &mut [f64]) {
    vectorised!({
        let ((columns, column_rest), (xs, x_rest)) = (column[1..].as_chunks::<8>(), x[1..].as_chunks::<8>());
        let (ys, y_rest) = y[1..].as_chunks_mut::<8>();
        let mut inner = [0.0; 8];
        for ((values, xs), ys) in columns.iter().zip(xs).zip(ys) {
            for i in 0..8 {
                inner[i] += values[i] * xs[i];
                ys[i] += values[i] * x[0];
            }
        }
        let mut sum = column[0] * x[0] + inner.iter().sum::<f64>();
        for ((value, x_i), y_i) in column_rest.iter().zip(x_rest).zip(y_rest) {
            sum += value * x_i;
            *y_i += value * x[0];
        }
        y[0] += sum;
    });
}

/// The lower triangle of a symmetric matrix by columns, to be kept during other work.
pub struct Packed {
    n: usize,
    values: Vec<f64>,
}

impl Packed {
    /// The lower triangle in the type of an eigendecomposition.
    pub fn unpack<T: RealField>(&self) -> Mat<T> {
        let mut out = Mat::zeros(self.n, self.n);
        let mut rest = self.values.as_slice();
        for j in 0..self.n {
            let (column, tail) = rest.split_at(self.n - j);
            for (target, value) in out.col_as_slice_mut(j)[j..].iter_mut().zip(column) {
                *target = T::from_f64_impl(*value);
            }
            rest = tail;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::dense::{View, gram_lower, gram_lower_f32, multiply_f32};
    use super::super::eigen::eigen_in_place;
    use super::super::eigen::tests::random_symmetric;
    use super::*;

    #[test]
    fn cholesky_decides_definiteness() {
        let a = random_symmetric(90, 3);
        let values = a.self_adjoint_eigenvalues(Side::Lower).unwrap();
        let (least, most) = (values[0], values[89]);
        let mut symmetric = Symmetric::from_lower(a);
        assert!(symmetric.has_cholesky(-1.0, most * 1.0001, Par::Seq));
        assert!(!symmetric.has_cholesky(-1.0, most * 0.9999, Par::Seq));
        assert!(symmetric.has_cholesky(1.0, -least * 1.0001, Par::Seq));
        assert!(!symmetric.has_cholesky(1.0, -least * 0.9999, Par::Seq));
    }

    /// Over several blocks of columns, the last a partial one.
    #[test]
    fn a_product_with_a_vector_is_that_of_the_whole_matrix() {
        for n in [1, 7, COLUMNS, 2 * COLUMNS + 13] {
            let a = random_symmetric(n, 5);
            let x: Vec<f64> = (0..n).map(|i| (i as f64 * 0.7).sin()).collect();
            let found = Symmetric::from_lower(a.clone()).apply(&x);
            for (i, found) in found.iter().enumerate() {
                let exact: f64 = x.iter().enumerate().map(|(j, x)| a[(i, j)] * x).sum();
                assert!((found - exact).abs() < 1e-12 * n as f64, "{n}, {i}: {found} {exact}");
            }
        }
    }

    /// Results must not depend on the number of threads.
    #[test]
    fn parallelism_does_not_change_a_bit() {
        let n = 500;
        let values: Vec<f32> = random_symmetric(n, 4).col_iter().flat_map(|c| c.iter().map(|x| *x as f32)).collect();
        let view = View::new(&values, n, n);
        let run = |par: Par| {
            let gram = gram_lower(view, false, 1.0, par);
            let (values, vectors) = eigen_in_place(gram.clone(), par).unwrap();
            let mut symmetric = Symmetric::from_lower(gram.clone());
            assert!(symmetric.has_cholesky(1.0, 1.0, par));
            let factor = symmetric.into_work();
            let narrow = eigen_in_place(Mat::<f32>::from_fn(n, n, |i, j| gram[(i, j)] as f32), par).unwrap();
            (gram, multiply_f32(view, true, view, par), gram_lower_f32(view, par), factor, values, vectors, narrow)
        };
        assert!(run(Par::Seq) == run(Par::rayon(2)));
    }
}

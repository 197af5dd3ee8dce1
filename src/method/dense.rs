//! The dense f64 kernels under the direction: panels widened from f32 row-major storage, triangular products,
//! eigendecomposition and Cholesky, all faer's.
//!
//! No f32 matrix is held a second time in f64 (operands are widened a panel at a time), and the eigendecomposition
//! works in place: memory is budgeted by the caller ([`super::factorize`]).

use super::krylov;
use anyhow::{Result, anyhow};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::cholesky::{lblt, llt};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch as reflect_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj as reflect,
};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::linalg::{evd, qr};
use faer::traits::RealField;
use faer::{Accum, Conj, Mat, MatMut, MatRef, Par, Side, Spec};
use rayon::prelude::*;
use std::ops::Range;

/// Bytes of a widened panel.
const PANEL_BYTES: usize = 8 << 20;
/// Bytes of the panel that a product holds while it passes over the other matrix.
const HELD_BYTES: usize = 16 << 20;
/// Powers in a rough estimate of a norm.
const POWERS: usize = 6;
/// Residual of the eigenpair behind a good one, as part of the rough one.
const NEAR: f64 = 5e-3;
/// Departure from orthonormal columns, squared, up to which a correction of first order leaves nothing in f32.
const SLIGHT: f32 = 1e-7;
/// Below this size a partial solver has no room to work in.
pub const SMALL: usize = 128;

/// A row-major f32 matrix.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    pub rows: usize,
    pub columns: usize,
}

impl<'a> View<'a> {
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(data.len(), rows * columns, "a [{rows}, {columns}] matrix");
        Self { data, rows, columns }
    }

    fn matrix(&self) -> MatRef<'a, f32> {
        MatRef::from_row_major_slice(self.data, self.rows, self.columns)
    }

    /// The block's transpose, [columns, rows], in f64.
    pub fn block_t(&self, rows: Range<usize>, columns: Range<usize>) -> Mat<f64> {
        let mut out = Mat::zeros(columns.len(), rows.len());
        out.as_mut().par_col_iter_mut().zip(rows).with_min_len(16).for_each(|(target, row)| {
            let source = &self.data[row * self.columns..][columns.clone()];
            for (target, value) in target.iter_mut().zip(source) {
                *target = f64::from(*value);
            }
        });
        out
    }
}

/// Consecutive ranges over 0..length, each narrow enough for a panel of the given height.
pub fn panels(length: usize, height: usize) -> impl Iterator<Item = Range<usize>> {
    ranges(length, (PANEL_BYTES / 8 / height.max(1)).clamp(16, 512))
}

fn ranges(length: usize, width: usize) -> impl Iterator<Item = Range<usize>> {
    (0..length).step_by(width).map(move |start| start..(start + width).min(length))
}

/// Calls `take` with every panel of columns, transposed: [width, rows].
pub fn for_each_column_panel(view: View, mut take: impl FnMut(Range<usize>, Mat<f64>)) {
    for columns in panels(view.columns, view.rows) {
        take(columns.clone(), view.block_t(0..view.rows, columns));
    }
}

/// Calls `take` with every block of A B (or AᵀB): its first row, its first column, its values.
pub fn for_each_product(a: View, transposed: bool, b: View, par: Par, mut take: impl FnMut(usize, usize, &Mat<f64>)) {
    let rows = if transposed { a.columns } else { a.rows };
    for columns in ranges(b.columns, (HELD_BYTES / 8 / b.rows.max(1)).clamp(16, 1024)) {
        let right = b.block_t(0..b.rows, columns.clone());
        for block in panels(rows, b.rows) {
            let product = if transposed {
                let left = a.block_t(0..a.rows, block.clone());
                multiply(left.as_ref(), right.transpose(), par)
            } else {
                let left = a.block_t(block.clone(), 0..a.columns);
                multiply(left.transpose(), right.transpose(), par)
            };
            take(block.start, columns.start, &product);
        }
    }
}

/// A B (or AᵀB), row-major, with sums in f32.
pub fn multiply_f32(a: View, transposed: bool, b: View, par: Par) -> Vec<f32> {
    let a = if transposed { a.matrix().transpose() } else { a.matrix() };
    let mut out = vec![0f32; a.nrows() * b.columns];
    let product = MatMut::from_row_major_slice_mut(&mut out, a.nrows(), b.columns);
    matmul(product, Accum::Replace, a, b.matrix(), 1.0, par);
    out
}

/// The lower triangle of `weight` X Xᵀ, X = A (or Aᵀ), summed over panels.
pub fn gram_lower(a: View, transposed: bool, weight: f64, par: Par) -> Mat<f64> {
    let n = if transposed { a.columns } else { a.rows };
    let mut gram = Mat::zeros(n, n);
    let inner = if transposed { a.rows } else { a.columns };
    for range in panels(inner, n) {
        if transposed {
            let panel = a.block_t(range, 0..a.columns); // [n, width]
            add_lower(&mut gram, panel.as_ref(), panel.transpose(), weight, par);
        } else {
            let panel = a.block_t(0..a.rows, range); // [width, n]
            add_lower(&mut gram, panel.transpose(), panel.as_ref(), weight, par);
        }
    }
    gram
}

/// The lower triangle of XᵀX, with sums in f32.
pub fn gram_lower_f32(x: View, par: Par) -> Mat<f32> {
    use BlockStructure::{Rectangular, TriangularLower};
    let mut gram = Mat::zeros(x.columns, x.columns);
    let x = x.matrix();
    let left = x.transpose();
    triangular::matmul(&mut gram, TriangularLower, Accum::Replace, left, Rectangular, x, Rectangular, 1.0, par);
    gram
}

/// Adds `weight` times the lower triangle of A B.
pub fn add_lower(to: &mut Mat<f64>, a: MatRef<f64>, b: MatRef<f64>, weight: f64, par: Par) {
    use BlockStructure::{Rectangular, TriangularLower};
    triangular::matmul(to, TriangularLower, Accum::Add, a, Rectangular, b, Rectangular, weight, par);
}

/// A B.
pub fn multiply(a: MatRef<f64>, b: MatRef<f64>, par: Par) -> Mat<f64> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    matmul(&mut out, Accum::Replace, a, b, 1.0, par);
    out
}

/// A symmetric matrix that is factored again and again: its lower triangle, packed by columns, and a working copy.
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

    /// The working copy, whose lower triangle is what was last loaded or factored.
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

    /// The largest ‖A x‖ / ‖x‖ of a few powers of a positive semidefinite A on a vector: below its norm, but seldom by
    /// half.
    pub fn rough_norm(&self) -> f64 {
        let n = self.dim();
        // Nothing regular, lest the vector be orthogonal to what it should find.
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

    /// A x.
    fn apply(&self, x: &[f64]) -> Vec<f64> {
        let n = self.dim();
        let mut y = vec![0.0; n];
        let mut rest = self.packed.as_slice();
        for j in 0..n {
            let (column, tail) = rest.split_at(n - j);
            let mut inner = [0.0; 8];
            let below = column[1..].chunks(8).zip(x[j + 1..].chunks(8)).zip(y[j + 1..].chunks_mut(8));
            for ((values, x_part), y_part) in below {
                for (((sum, value), x_i), y_i) in inner.iter_mut().zip(values).zip(x_part).zip(y_part) {
                    *sum += value * x_i;
                    *y_i += value * x[j];
                }
            }
            y[j] += column[0] * x[j] + inner.iter().sum::<f64>();
            rest = tail;
        }
        y
    }

    /// The number of eigenvalues above `threshold`, by the signs of D in L D Lᵀ (Sylvester).
    pub fn count_above(&mut self, threshold: f64, par: Par) -> usize {
        self.load(1.0, -threshold);
        let n = self.dim();
        let mut subdiagonal = Diag::<f64>::zeros(n);
        let (mut forward, mut backward) = (vec![0usize; n], vec![0usize; n]);
        let mut memory = MemBuffer::new(lblt::factor::cholesky_in_place_scratch::<usize, f64>(n, par, Spec::default()));
        lblt::factor::cholesky_in_place(
            self.work.as_mut(),
            subdiagonal.as_mut(),
            &mut forward,
            &mut backward,
            par,
            MemStack::new(&mut memory),
            Spec::default(),
        );
        let (mut positive, mut i) = (0, 0);
        while i < n {
            let off = subdiagonal[i];
            if off == 0.0 || i + 1 == n {
                positive += usize::from(self.work[(i, i)] > 0.0);
                i += 1;
            } else {
                let (a, d) = (self.work[(i, i)], self.work[(i + 1, i + 1)]);
                positive += if a * d - off * off < 0.0 { 1 } else { 2 * usize::from(a + d > 0.0) };
                i += 2;
            }
        }
        positive
    }

    /// The eigenpairs of largest magnitude, or none if the partial solver does not find them.
    pub fn leading(&mut self, k: usize, tolerance: f64, par: Par) -> Option<(Vec<f64>, Mat<f64>)> {
        let n = self.dim();
        self.load(1.0, 0.0);
        for j in 1..n {
            for i in 0..j {
                self.work[(i, j)] = self.work[(j, i)];
            }
        }
        krylov::leading(self.work.as_ref(), k, tolerance, par)
    }

    /// A lower estimate of the spectral norm, near it.
    pub fn norm_estimate(&mut self, par: Par) -> f64 {
        let frobenius = self.frobenius();
        if self.dim() > SMALL {
            let near = NEAR * self.rough_norm();
            return self.leading(1, near, par).map_or(frobenius, |(values, _)| values[0].abs());
        }
        self.load(1.0, 0.0);
        match self.work.self_adjoint_eigenvalues(Side::Lower) {
            Ok(values) => values.iter().fold(0.0, |most, value| most.max(value.abs())),
            Err(_) => frobenius,
        }
    }
}

/// The lower triangle of a symmetric matrix by columns, to be kept while others work.
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

/// All eigenpairs of a symmetric matrix given by its lower triangle, ascending. Works in the matrix's own memory: the
/// peak is four matrices, its own, the eigenvectors and two of workspace. The reduction to tridiagonal form keeps to one
/// thread: it waits for memory, and faer's would sum in another order on two.
pub fn eigen_in_place<T: RealField>(mut a: Mat<T>, par: Par) -> Result<(Vec<T>, Mat<T>)> {
    let n = a.nrows();
    let block = qr::no_pivoting::factor::recommended_block_size::<T>(n, n);
    let mut reflectors = Mat::<T>::zeros(block, n - 1);
    let scratch = evd::tridiag::tridiag_in_place_scratch::<T>(n, Par::Seq, Spec::default());
    with_stack(scratch, |stack| {
        evd::tridiag::tridiag_in_place(a.as_mut(), reflectors.as_mut(), Par::Seq, stack, Spec::default());
    });
    let (mut diagonal, mut below) = (Diag::<T>::zeros(n), Diag::<T>::zeros(n));
    for i in 0..n {
        diagonal[i] = a[(i, i)].clone();
        if i + 1 < n {
            below[i] = a[(i + 1, i)].clone();
        }
    }
    let (mut values, mut vectors) = (Diag::<T>::zeros(n), Mat::<T>::zeros(n, n));
    let square = StackReq::new::<T>(n * (n + 64)); // columns are padded to a cache line
    with_stack(square.and(square).and(StackReq::new::<[u64; 16]>(2 * n + 64)), |stack| {
        let vectors = Some(vectors.as_mut());
        evd::tridiagonal_self_adjoint_evd(
            diagonal.as_ref(),
            below.as_ref(),
            values.as_mut(),
            vectors,
            par,
            stack,
            Spec::default(),
        )
    })
    .map_err(|e| anyhow!("the eigenvalue iteration did not converge: {e:?}"))?;
    if n > 1 {
        with_stack(reflect_scratch::<T>(n - 1, block, n), |stack| {
            let basis = a.submatrix(1, 0, n - 1, n - 1);
            let rows = vectors.as_mut().subrows_mut(1, n - 1);
            reflect(basis, reflectors.as_ref(), Conj::No, rows, par, stack);
        });
    }
    Ok((values.column_vector().iter().cloned().collect(), vectors))
}

/// Makes the columns of a row-major matrix [rows, k] orthonormal: X ← X L⁻ᵀ, XᵀX = L Lᵀ. They must be nearly so; where
/// they are so but for rounding, L⁻¹ is taken to first order and all in f32.
pub fn orthonormalize(values: &mut [f32], rows: usize, k: usize, par: Par) -> Result<()> {
    if let Some(inverse) = slight_departure(View::new(values, rows, k), par) {
        use BlockStructure::{Rectangular, TriangularUpper};
        for range in panels(rows, k) {
            let block = &mut values[range.start * k..range.end * k];
            let panel = View::new(block, range.len(), k).matrix().to_owned();
            let target = MatMut::from_row_major_slice_mut(block, range.len(), k);
            let inverse = inverse.transpose();
            triangular::matmul(
                target,
                Rectangular,
                Accum::Replace,
                &panel,
                Rectangular,
                inverse,
                TriangularUpper,
                1.0,
                par,
            );
        }
        return Ok(());
    }
    let mut gram = Symmetric::from_lower(gram_lower(View::new(values, rows, k), true, 1.0, par));
    anyhow::ensure!(gram.has_cholesky(1.0, 0.0, par), "the singular vectors found are linearly dependent");
    let l = gram.into_work();
    for range in panels(rows, k) {
        let block = &mut values[range.start * k..range.end * k];
        let mut panel = View::new(block, range.len(), k).block_t(0..range.len(), 0..k);
        solve_lower_triangular_in_place(l.as_ref(), panel.as_mut(), par);
        for (j, row) in block.chunks_mut(k.max(1)).enumerate() {
            for (target, value) in row.iter_mut().zip(panel.col_as_slice(j)) {
                *target = *value as f32;
            }
        }
    }
    Ok(())
}

/// L⁻¹ to first order for XᵀX = I + E = L Lᵀ, if E is small enough: L ≈ I + E's strict lower triangle + half its diagonal.
fn slight_departure(x: View, par: Par) -> Option<Mat<f32>> {
    let k = x.columns;
    let mut gram = gram_lower_f32(x, par);
    let mut columns = vec![0f32; k];
    for j in 0..k {
        let column = &mut gram.col_as_slice_mut(j)[j..];
        column[0] = 0.5 * (column[0] - 1.0);
        for (i, value) in column.iter_mut().enumerate() {
            let square = *value * *value;
            columns[j] += square;
            columns[j + i] += square;
            *value = -*value;
        }
        column[0] += 1.0;
    }
    // Not a number counts as large.
    columns.iter().all(|square| *square <= SLIGHT).then_some(gram)
}

fn with_stack<R>(size: StackReq, work: impl FnOnce(&mut MemStack) -> R) -> R {
    let mut memory = MemBuffer::new(size);
    work(MemStack::new(&mut memory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    fn random_symmetric(n: usize, seed: u64) -> Mat<f64> {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let x = Mat::<f64>::from_fn(n, n, |_, _| random.random_range(-1.0..1.0));
        &x + x.transpose()
    }

    #[test]
    fn in_place_eigenpairs_reconstruct() {
        for n in [1, 2, 3, 40, 200] {
            let a = random_symmetric(n, 1);
            let (values, vectors) = eigen_in_place(a.clone(), Par::Seq).unwrap();
            let scaled = Mat::from_fn(n, n, |i, j| vectors[(i, j)] * values[j]);
            let difference = &scaled * vectors.transpose() - &a;
            assert!(difference.norm_l2() < 1e-10 * (1.0 + a.norm_l2()), "{n}");
        }
    }

    #[test]
    fn inertia_counts_eigenvalues() {
        for n in [1, 7, 60, 150] {
            let a = random_symmetric(n, 2);
            let values = a.self_adjoint_eigenvalues(Side::Lower).unwrap();
            let mut symmetric = Symmetric::from_lower(a);
            for threshold in [-3.0, -0.1, 0.0, 0.5, 4.0, 100.0] {
                let expected = values.iter().filter(|v| **v > threshold).count();
                assert_eq!(symmetric.count_above(threshold, Par::Seq), expected, "{n} {threshold}");
            }
        }
    }

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

    /// What is computed must not depend on the number of threads.
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

//! The dense products under the direction: f32 row-major storage, widened to f64 a panel at a time, and faer's triangular
//! products. No f32 matrix is held a second time in f64: memory is budgeted by the caller ([`super::factorize`]).

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;
use std::ops::Range;

/// Bytes of a widened panel.
const PANEL_BYTES: usize = 8 << 20;
/// Bytes of the panel that a product holds while it goes over the other matrix.
const HELD_BYTES: usize = 16 << 20;

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

    pub fn matrix(&self) -> MatRef<'a, f32> {
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

/// Adds A B, of a symmetric A given by its lower triangle.
pub fn add_symmetric(to: &mut Mat<f64>, a: &Mat<f64>, b: MatRef<f64>, par: Par) {
    use BlockStructure::{Rectangular, StrictTriangularUpper, TriangularLower};
    let upper = a.transpose();
    for (a, part) in [(a.as_ref(), TriangularLower), (upper, StrictTriangularUpper)] {
        triangular::matmul(to.as_mut(), Rectangular, Accum::Add, a, part, b, Rectangular, 1.0, par);
    }
}

/// A B.
pub fn multiply(a: MatRef<f64>, b: MatRef<f64>, par: Par) -> Mat<f64> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    matmul(&mut out, Accum::Replace, a, b, 1.0, par);
    out
}

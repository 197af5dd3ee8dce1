//! Small matrices in slices, row after row, for one thread.

#![allow(unsafe_code, reason = "matrix products of slices")]

use crate::ops::fast_math::vectorised;
use crate::ops::gemm::product;
use crate::ops::matrix::Matrix;
use crate::ops::traffic;
use gemm::Parallelism;

/// A matrix in a slice, row after row.
#[derive(Clone, Copy)]
pub struct View<'a> {
    values: &'a [f32],
    columns: usize,
    transposed: bool,
}

pub fn rows_of(values: &[f32], columns: usize) -> View<'_> {
    View { values, columns, transposed: false }
}

impl View<'_> {
    pub fn t(self) -> Self {
        Self { transposed: true, ..self }
    }

    /// The matrix as a product reads it, after checking that it has `rows` × `columns` values.
    fn checked(self, rows: usize, columns: usize) -> Matrix {
        let (stored_rows, stored_columns) = if self.transposed { (columns, rows) } else { (rows, columns) };
        assert!(stored_columns == self.columns && stored_rows * stored_columns <= self.values.len());
        let matrix = Matrix::read(self.values, 0, self.columns);
        if self.transposed { matrix.t() } else { matrix }
    }
}

/// out = a b, or out += a b; a: [m, k], b: [k, n], out: [m, n].
pub fn multiply((m, n, k): (usize, usize, usize), a: View, b: View, out: &mut [f32], accumulate: bool) {
    assert!(out.len() >= m * n);
    let (a, b, out) = (a.checked(m, k), b.checked(k, n), Matrix::write(out, n));
    // SAFETY: the three have the values of their sizes, as was checked, and `out` is borrowed for writing.
    unsafe { product((m, n, k), a, b, out, 1.0, accumulate, Parallelism::None) };
}

/// Solves (I + L) X = B in place, B: [rows, columns], L strictly lower: row by row, or for the transpose from the last.
pub fn solve(l: &[f32], rows: usize, transposed: bool, b: &mut [f32], columns: usize) {
    traffic::product((1, columns, rows * (rows - 1) / 2));
    vectorised!({
        for step in 0..rows {
            let i = if transposed { rows - 1 - step } else { step };
            for other in 0..step {
                let j = if transposed { rows - 1 - other } else { other };
                let factor = if transposed { l[j * rows + i] } else { l[i * rows + j] };
                let (low, high) = b.split_at_mut(i.max(j) * columns);
                let (target, source) = if i > j {
                    (&mut high[..columns], &low[j * columns..][..columns])
                } else {
                    (&mut low[i * columns..][..columns], &high[..columns])
                };
                target.iter_mut().zip(source).for_each(|(x, y)| *x -= factor * y);
            }
        }
    });
}

/// Scales row i of x by factors[i].
pub fn scale_rows(x: &mut [f32], factors: &[f32], columns: usize) {
    vectorised!({
        for (row, factor) in x.chunks_mut(columns).zip(factors) {
            row.iter_mut().for_each(|x| *x *= factor);
        }
    });
}

pub fn scaled_rows(x: &[f32], factors: &[f32], columns: usize) -> Vec<f32> {
    let mut y = x.to_vec();
    scale_rows(&mut y, factors, columns);
    y
}

/// y += f x for each row.
pub fn add_scaled_rows(y: &mut [f32], x: &[f32], factors: &[f32], columns: usize) {
    vectorised!({
        for ((y, x), factor) in y.chunks_mut(columns).zip(x.chunks(columns)).zip(factors) {
            y.iter_mut().zip(x).for_each(|(y, x)| *y += factor * x);
        }
    });
}

pub fn inner(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    vectorised!({
        for (a, b) in a.chunks(16).zip(b.chunks(16)) {
            for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
                *lane += a * b;
            }
        }
    });
    lanes.iter().sum()
}

pub fn row_products(a: &[f32], b: &[f32], columns: usize) -> Vec<f32> {
    a.chunks(columns).zip(b.chunks(columns)).map(|(a, b)| inner(a, b)).collect()
}

//! Columns of row-major f32 matrices: filling, scaling, fixing signs, sorting, orthonormalising.

use super::dense::{View, gram_lower, gram_lower_f32, panels};
use super::symmetric::Symmetric;
use anyhow::Result;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::{Accum, Mat, MatMut, Par};

/// Squared departure from orthonormal columns up to which a first-order correction is exact in f32.
const SLIGHT: f32 = 1e-7;

/// A matrix [n, k] given by its entries.
pub fn row_major(n: usize, k: usize, value: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let mut out = vec![0f32; n * k];
    for (i, row) in out.chunks_mut(k.max(1)).enumerate() {
        for (j, target) in row.iter_mut().enumerate() {
            *target = value(i, j);
        }
    }
    out
}

/// Stores a block at the given first row and column, rounded to f32.
pub fn store(to: &mut [f32], k: usize, row0: usize, column0: usize, block: &Mat<f64>) {
    for i in 0..block.nrows() {
        let row = &mut to[(row0 + i) * k + column0..][..block.ncols()];
        for (j, target) in row.iter_mut().enumerate() {
            *target = block[(i, j)] as f32;
        }
    }
}

/// The squared lengths of k columns.
pub fn column_squares(values: &[f32], k: usize) -> Vec<f64> {
    let mut squares = vec![0f64; k];
    for row in values.chunks(k.max(1)) {
        for (sum, value) in squares.iter_mut().zip(row) {
            *sum += f64::from(*value).powi(2);
        }
    }
    squares
}

/// Scales columns to unit length.
pub fn unit_columns(values: &mut [f32], k: usize) {
    let squares = column_squares(values, k);
    for row in values.chunks_mut(k.max(1)) {
        for (value, sum) in row.iter_mut().zip(&squares) {
            *value = (f64::from(*value) / sum.sqrt().max(f64::MIN_POSITIVE)) as f32;
        }
    }
}

/// Makes each column's entry of largest magnitude positive, as an eigenvector's sign is otherwise arbitrary.
pub fn fix_signs(values: &mut [f32], k: usize) {
    let mut most = vec![0f32; k];
    for row in values.chunks(k.max(1)) {
        for (most, value) in most.iter_mut().zip(row) {
            if value.abs() > most.abs() {
                *most = *value;
            }
        }
    }
    for row in values.chunks_mut(k.max(1)) {
        for (most, value) in most.iter().zip(row) {
            if *most < 0.0 {
                *value = -*value;
            }
        }
    }
}

/// The order that sorts `c` descending; rounding can swap near-equal neighbours.
pub fn descending(c: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..c.len()).collect();
    order.sort_by(|a, b| c[*b].total_cmp(&c[*a]));
    order
}

/// Permutes columns.
pub fn reorder(values: &mut [f32], order: &[usize]) {
    if order.windows(2).all(|pair| pair[0] < pair[1]) {
        return;
    }
    let mut old = vec![0f32; order.len()];
    for row in values.chunks_mut(order.len()) {
        old.copy_from_slice(row);
        for (target, from) in row.iter_mut().zip(order) {
            *target = old[*from];
        }
    }
}

/// Makes the columns of a row-major matrix [rows, k] orthonormal: X ← X L⁻ᵀ, XᵀX = L Lᵀ. They must be nearly
/// orthonormal; if they are so up to rounding, L⁻¹ is taken to first order, all in f32.
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
    // NaN counts as large.
    columns.iter().all(|square| *square <= SLIGHT).then_some(gram)
}

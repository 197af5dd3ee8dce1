//! Columns of row-major f32 matrices: filled, scaled, turned, sorted.

use faer::Mat;

/// A matrix [n, k] by its entries.
pub fn row_major(n: usize, k: usize, value: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let mut out = vec![0f32; n * k];
    for (i, row) in out.chunks_mut(k.max(1)).enumerate() {
        for (j, target) in row.iter_mut().enumerate() {
            *target = value(i, j);
        }
    }
    out
}

/// Puts a block where its first row and column say, rounded to f32.
pub fn store(to: &mut [f32], k: usize, row0: usize, column0: usize, block: &Mat<f64>) {
    for i in 0..block.nrows() {
        let row = &mut to[(row0 + i) * k + column0..][..block.ncols()];
        for (j, target) in row.iter_mut().enumerate() {
            *target = block[(i, j)] as f32;
        }
    }
}

/// Scales columns to unit length.
pub fn unit_columns(values: &mut [f32], k: usize) {
    let mut squares = vec![0f64; k];
    for row in values.chunks(k.max(1)) {
        for (sum, value) in squares.iter_mut().zip(row) {
            *sum += f64::from(*value).powi(2);
        }
    }
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

//! Strided f32 matrix products on slices, for kernels that read heads in place or write into parts of a buffer.

#![allow(unsafe_code, reason = "matrix products on strided parts of slices, which tasks write side by side")]

use super::dot::dot;
use super::matrix::Matrix;
use super::thin;
use super::traffic;
use super::widen::{Values, of_bf16};
use crate::quant::{Quantised, Vector};
use gemm::Parallelism;
use rayon::prelude::*;
use std::ops::Range;

/// Half-precision weights widened at a time: a few MiB, whatever the matrix's size.
const BLOCK_ELEMENTS: usize = 1 << 21;

/// out = alpha · a · b, or out += alpha · a · b when `accumulate`; a: m × k, b: k × n, out: m × n.
///
/// # Safety
/// The three matrices lie inside live allocations for those sizes, `out` in memory that may be written, that does not
/// overlap `a` or `b`, and that no other thread touches meanwhile.
pub unsafe fn product(
    (m, n, k): (usize, usize, usize),
    a: Matrix,
    b: Matrix,
    out: Matrix,
    alpha: f32,
    accumulate: bool,
    parallelism: Parallelism,
) {
    traffic::product((m, n, k));
    // SAFETY: promised by the caller.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.data,
            out.col_stride,
            out.row_stride,
            accumulate,
            a.data,
            a.col_stride,
            a.row_stride,
            b.data,
            b.col_stride,
            b.row_stride,
            1.0,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Multiplications that one thread does on its own.
const SMALL_PRODUCT: usize = 1 << 19;
/// The narrowest part of a product that a thread takes, and the width of parts from which on each thread takes two.
/// Wide enough that the sums of every part are computed as in the whole.
const NARROW: usize = 96;
const WIDE: usize = 320;

/// As [`product`], on every thread: parts of the columns, or also of the rows if columns are few, side by side. gemm's
/// own threads wait for the one that packs b, and for each other after every few hundred of k.
///
/// # Safety
/// As [`product`].
pub unsafe fn product_in_parts((m, n, k): (usize, usize, usize), a: Matrix, b: Matrix, out: Matrix, accumulate: bool) {
    let threads = rayon::current_num_threads();
    let part = |rows: &Range<usize>, columns: &Range<usize>| {
        let (i, j) = (rows.start, columns.start);
        let (sizes, out) = ((rows.len(), columns.len(), k), out.at(i, j));
        // SAFETY: promised by the caller; parts of the output do not overlap.
        unsafe { product(sizes, a.at(i, 0), b.at(0, j), out, 1.0, accumulate, Parallelism::None) };
    };
    // For a few rows or columns gemm uses other methods, whose sums depend on their number.
    if threads == 1 || m * n * k <= SMALL_PRODUCT || m.min(n) < FEW_ROWS {
        return part(&(0..m), &(0..n));
    }
    let columns = parts(n, if n >= 2 * threads * WIDE { 2 * threads } else { threads });
    let rows = parts(m, threads.div_ceil(columns.len()));
    let all: Vec<_> = columns.iter().flat_map(|columns| rows.iter().map(move |rows| (rows, columns))).collect();
    all.into_par_iter().with_max_len(1).for_each(|(rows, columns)| part(rows, columns));
}

/// 0..length in at most `count` parts of at least [`NARROW`].
fn parts(length: usize, count: usize) -> Vec<Range<usize>> {
    let count = count.min(length / NARROW).max(1);
    let step = if count == 1 { length } else { length / count / 32 * 32 };
    (0..count).map(|i| i * step..if i + 1 == count { length } else { (i + 1) * step }).collect()
}

/// Up to this many rows of activations, a product with a weight is bound by reading the weight once.
pub const FEW_ROWS: usize = 4;
/// Weight rows in a task of such a product.
const TASK_ROWS: usize = 16;

/// A weight matrix as stored in memory: row-major rows × cols, f32, half precision or quantised.
#[derive(Clone, Copy)]
pub struct Stored<'a> {
    pub values: Values<'a>,
    pub rows: usize,
    pub cols: usize,
    /// Whether the product is with the transpose.
    pub transposed: bool,
}

/// out = a · w, or out += a · w when `accumulate`, on every thread; a has m rows. Other weights than f32 are widened a block
/// of rows at a time.
///
/// # Safety
/// As [`product`].
pub unsafe fn product_with(m: usize, a: Matrix, w: Stored, out: Matrix, accumulate: bool) {
    if w.transposed && m <= FEW_ROWS && a.has_rows() && !accumulate && !matches!(w.values, Values::F16(_)) {
        // SAFETY: promised by the caller.
        return unsafe { few_rows(m, a, &[(w, out)]) };
    }
    let sizes = (m, w.rows, w.cols);
    // SAFETY: promised by the caller.
    if w.transposed && !accumulate && unsafe { thin::by_rows(sizes, a, w.values, out) } {
        return traffic::product(sizes);
    }
    let product = |sizes: (usize, usize, usize), a: Matrix, b: Matrix, out: Matrix, accumulate: bool| {
        // SAFETY: promised by the caller.
        unsafe {
            if thin::product(sizes, a, b, out, accumulate) {
                traffic::product(sizes);
            } else {
                product_in_parts(sizes, a, b, out, accumulate);
            }
        }
    };
    let block = |first: usize, count: usize, rows: &[f32], accumulate: bool| {
        let rows = Matrix::read(rows, 0, w.cols);
        if w.transposed {
            product((m, count, w.cols), a, rows.t(), out.at(0, first), accumulate);
        } else {
            product((m, w.cols, count), a.at(0, first), rows, out, accumulate || first > 0);
        }
    };
    if let Values::F32(values) = w.values {
        return block(0, w.rows, values, accumulate);
    }
    let step = (BLOCK_ELEMENTS / w.cols.max(1)).clamp(1, w.rows.max(1));
    let mut wide = vec![0f32; step * w.cols];
    for first in (0..w.rows).step_by(step) {
        let count = step.min(w.rows - first);
        let wide = &mut wide[..count * w.cols];
        w.values.widen_into(first * w.cols, wide);
        block(first, count, wide, accumulate);
    }
}

/// out = a · wᵀ for a few rows of a and any number of (w, out) in one go. Every row of w, f32, half precision or quantised, is
/// read from memory once.
///
/// # Safety
/// As [`product`], with m rows of a whose elements are contiguous.
pub unsafe fn few_rows(m: usize, a: Matrix, parts: &[(Stored, Matrix)]) {
    // Without a row, a may have no memory to look at.
    if m == 0 {
        return;
    }
    let tasks: Vec<(usize, usize)> = parts
        .iter()
        .enumerate()
        .flat_map(|(part, (w, _))| (0..w.rows).step_by(TASK_ROWS).map(move |first| (part, first)))
        .collect();
    let cols = parts.first().map_or(0, |(w, _)| w.cols);
    parts.iter().for_each(|(w, _)| traffic::product((m, w.rows, w.cols)));
    // SAFETY: row 0 of a holds `cols` contiguous values, by the caller's promise.
    let vector = Vector::new(unsafe { a.row(0, cols) });
    tasks.par_iter().for_each(|&(part, first)| {
        let (w, out) = parts[part];
        let rows = first..(first + TASK_ROWS).min(w.rows);
        let elements = rows.start * w.cols..rows.end * w.cols;
        let out = out.at(0, first);
        // SAFETY: promised by the caller; this task alone writes these columns of out.
        unsafe {
            match w.values {
                Values::F32(values) => rows_of(m, a, (&values[elements], w.cols), out, |x| x),
                Values::Bf16(values) => rows_of(m, a, (&values[elements], w.cols), out, of_bf16),
                Values::F16(values) => rows_of(m, a, (&values[elements], w.cols), out, |x| x.to_f32()),
                Values::Quantised(matrix) => quantised_rows(m, a, &vector, (matrix, rows), out),
            }
        }
    });
}

/// Some rows of w for [`few_rows`].
///
/// # Safety
/// As there.
unsafe fn rows_of<T: Copy>(m: usize, a: Matrix, (w, cols): (&[T], usize), out: Matrix, wide: impl Fn(T) -> f32 + Copy) {
    for (j, w) in w.chunks(cols.max(1)).enumerate() {
        for i in 0..m {
            // SAFETY: row i of a holds `cols` contiguous values, by the caller's promise.
            let x = unsafe { a.row(i, cols) };
            // SAFETY: element (i, j) of out, by the caller's promise.
            unsafe { out.set(i, j, dot(w, x, wide)) };
        }
    }
}

/// As [`rows_of`], for the rows `rows` of a quantised w: of one row of a, `x`, straight from the blocks; for several each is
/// widened once.
///
/// # Safety
/// As there.
unsafe fn quantised_rows(m: usize, a: Matrix, x: &Vector, (w, rows): (&Quantised, Range<usize>), out: Matrix) {
    let (_, cols) = w.shape();
    if m == 1 {
        // SAFETY: row 0 of out from its first column on, by the caller's promise.
        return w.dots(rows.start, x, unsafe { out.row_mut(0, rows.len()) });
    }
    let mut wide = vec![0f32; cols];
    for (j, row) in rows.enumerate() {
        // SAFETY: rows of a hold `cols` contiguous values, by the caller's promise.
        let x = |i: usize| unsafe { a.row(i, cols) };
        // SAFETY: element (i, j) of out, by the caller's promise.
        let set = |i: usize, sum: f32| unsafe { out.set(i, j, sum) };
        w.widen(row * cols, &mut wide);
        (0..m).for_each(|i| set(i, dot(&wide, x(i), |w| w)));
    }
}

#[cfg(test)]
mod tests;

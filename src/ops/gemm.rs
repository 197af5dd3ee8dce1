//! Strided f32 matrix products on slices, for kernels that read heads in place or write into parts of a buffer.

use super::widen::Values;
use gemm::Parallelism;

/// Half-precision weights widened at a time: a few MiB, whatever the matrix's size.
const BLOCK_ELEMENTS: usize = 1 << 21;

/// A matrix inside someone else's memory: element (i, j) lies `i * row_stride + j * col_stride` past `data`.
#[derive(Clone, Copy)]
pub struct Matrix {
    data: *mut f32,
    row_stride: isize,
    col_stride: isize,
}

// SAFETY: a `Matrix` is only a pointer; `product` states what its callers promise across threads.
unsafe impl Send for Matrix {}
// SAFETY: as above.
unsafe impl Sync for Matrix {}

impl Matrix {
    /// A row-major matrix to read, starting at element `offset` of `values`.
    pub fn read(values: &[f32], offset: usize, row_stride: usize) -> Self {
        Self { data: values[offset..].as_ptr().cast_mut(), row_stride: row_stride as isize, col_stride: 1 }
    }

    /// A row-major matrix to write.
    pub fn write(values: &mut [f32], row_stride: usize) -> Self {
        Self { data: values.as_mut_ptr(), row_stride: row_stride as isize, col_stride: 1 }
    }

    /// A row-major matrix of `rows` rows to write, in memory of its own that holds nothing yet; [`Fresh::filled`] takes
    /// it out once every element has been written.
    pub fn fresh(rows: usize, row_stride: usize) -> (Self, Fresh) {
        let mut values = Vec::with_capacity(rows * row_stride);
        let data = values.as_mut_ptr();
        (Self { data, row_stride: row_stride as isize, col_stride: 1 }, Fresh(values, rows * row_stride))
    }

    /// The part that starts at row `i`, column `j`. Stays inside the same allocation by the promise of [`product`].
    pub fn at(self, i: usize, j: usize) -> Self {
        let offset = i as isize * self.row_stride + j as isize * self.col_stride;
        Self { data: self.data.wrapping_offset(offset), ..self }
    }

    /// The transpose: the same memory with its strides exchanged.
    pub fn t(self) -> Self {
        Self { row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// Memory behind a [`Matrix::fresh`]. Zeros that a product writes over at once would cost as much as reading it.
pub struct Fresh(Vec<f32>, usize);

impl Fresh {
    /// The values.
    ///
    /// # Safety
    /// Every element has been written.
    pub unsafe fn filled(mut self) -> Vec<f32> {
        // SAFETY: promised by the caller; the capacity is that length.
        unsafe { self.0.set_len(self.1) };
        self.0
    }
}

/// out = alpha · a · b, or out += alpha · a · b when `accumulate`; a: m × k, b: k × n, out: m × n.
///
/// # Safety
/// The three matrices lie inside live allocations for those sizes, `out` in memory that may be written and that
/// neither overlaps `a` or `b` nor is touched by another thread meanwhile.
pub unsafe fn product(
    (m, n, k): (usize, usize, usize),
    a: Matrix,
    b: Matrix,
    out: Matrix,
    alpha: f32,
    accumulate: bool,
    parallelism: Parallelism,
) {
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

/// A weight matrix as it lies in memory: row-major rows × cols, f32 or half precision.
#[derive(Clone, Copy)]
pub struct Weight<'a> {
    pub values: Values<'a>,
    pub rows: usize,
    pub cols: usize,
    /// Whether the product is with the transpose.
    pub transposed: bool,
}

/// out = a · w, or out += a · w when `accumulate`, on every thread; a has m rows. Half-precision weights are widened a
/// block of rows at a time.
///
/// # Safety
/// As [`product`].
pub unsafe fn product_with(m: usize, a: Matrix, w: Weight, out: Matrix, accumulate: bool) {
    let threads = Parallelism::Rayon(rayon::current_num_threads());
    let block = |first: usize, count: usize, rows: &[f32], accumulate: bool| {
        let rows = Matrix::read(rows, 0, w.cols);
        // SAFETY: promised by the caller for the whole of a and out; `rows` holds `count` whole rows.
        unsafe {
            if w.transposed {
                product((m, count, w.cols), a, rows.t(), out.at(0, first), 1.0, accumulate, threads);
            } else {
                let accumulate = accumulate || first > 0;
                product((m, w.cols, count), a.at(0, first), rows, out, 1.0, accumulate, threads);
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_weights_over_several_blocks() {
        let (m, rows, cols) = (3, 2 * BLOCK_ELEMENTS / 1000 + 77, 1000);
        let half: Vec<half::bf16> = (0..rows * cols).map(|i| half::bf16::from_f32((i % 13) as f32 - 6.0)).collect();
        let wide: Vec<f32> = half.iter().map(|x| x.to_f32()).collect();
        for transposed in [true, false] {
            let (k, n) = if transposed { (cols, rows) } else { (rows, cols) };
            let a: Vec<f32> = (0..m * k).map(|i| (i % 7) as f32 - 3.0).collect();
            let run = |values| {
                let mut out = vec![1f32; m * n];
                let w = Weight { values, rows, cols, transposed };
                // SAFETY: whole matrices of these sizes.
                unsafe { product_with(m, Matrix::read(&a, 0, k), w, Matrix::write(&mut out, n), true) };
                out
            };
            // Small whole numbers: every sum is exact.
            assert_eq!(run(Values::Bf16(&half)), run(Values::F32(&wide)));
        }
    }

    #[test]
    fn strides_transposes_and_accumulation() {
        // a = [[1, 2], [3, 4]] inside rows of 3; b = its transpose; out starts at one.
        let a = [1.0, 2.0, 9.0, 3.0, 4.0, 9.0];
        let mut out = [1.0f32; 4];
        let lhs = Matrix::read(&a, 0, 3);
        // SAFETY: 2 × 2 views inside `a` and `out`, which is not shared.
        unsafe { product((2, 2, 2), lhs, lhs.t(), Matrix::write(&mut out, 2), 2.0, true, Parallelism::None) };
        assert_eq!(out, [11.0, 23.0, 23.0, 51.0]);
    }
}

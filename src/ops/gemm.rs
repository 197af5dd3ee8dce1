//! Strided f32 matrix products on slices, for kernels that read heads in place or write into parts of a buffer.

use gemm::Parallelism;

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

#[cfg(test)]
mod tests {
    use super::*;

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

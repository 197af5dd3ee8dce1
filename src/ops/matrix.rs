//! Matrices inside borrowed memory: a pointer and two strides, for kernels that read heads in place or write into parts
//! of a buffer.

#![allow(unsafe_code, reason = "matrices inside others' memory, parts of which tasks write side by side")]

use super::fresh::Fresh;
use crate::vectors::prefetch;
use std::mem::MaybeUninit;

/// A matrix inside borrowed memory: element (i, j) is at `i * row_stride + j * col_stride` past `data`.
#[derive(Clone, Copy)]
pub struct Matrix {
    pub(super) data: *mut f32,
    pub(super) row_stride: isize,
    pub(super) col_stride: isize,
}

// SAFETY: a `Matrix` is only a pointer; `gemm::product` states what its callers promise across threads.
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

    /// A row-major matrix of `rows` rows to write, in new, uninitialised memory; [`Fresh::filled`] returns it once
    /// every element has been written.
    pub fn fresh(rows: usize, row_stride: usize) -> (Self, Fresh) {
        let length = rows.checked_mul(row_stride).expect("a matrix larger than memory");
        let mut fresh = Fresh::new(length);
        let matrix = Self { data: fresh.data(), row_stride: row_stride as isize, col_stride: 1 };
        (matrix, fresh)
    }

    /// The part that starts at row `i`, column `j`. Stays inside the same allocation by the promise of [`super::gemm::product`].
    pub fn at(self, i: usize, j: usize) -> Self {
        let offset = i as isize * self.row_stride + j as isize * self.col_stride;
        Self { data: self.data.wrapping_offset(offset), ..self }
    }

    /// `length` values of row `i`, whose elements are contiguous.
    ///
    /// # Safety
    /// They lie inside a live allocation that nobody writes meanwhile.
    pub unsafe fn row<'a>(self, i: usize, length: usize) -> &'a [f32] {
        let data = self.at(i, 0).data;
        // SAFETY: promised by the caller.
        unsafe {
            look_at_ends(data, length);
            std::slice::from_raw_parts(data.cast_const(), length)
        }
    }

    /// As [`Matrix::row`], to write.
    ///
    /// # Safety
    /// They lie inside a live allocation that may be written and that nobody else touches meanwhile.
    pub unsafe fn row_mut<'a>(self, i: usize, length: usize) -> &'a mut [f32] {
        let data = self.at(i, 0).data;
        // SAFETY: promised by the caller.
        unsafe {
            look_at_ends(data, length);
            std::slice::from_raw_parts_mut(data, length)
        }
    }

    /// Whether each row's elements are contiguous.
    pub fn has_rows(self) -> bool {
        self.col_stride == 1
    }

    /// Whether rows of `width` elements follow one another without a gap.
    pub fn has_rows_of(self, width: usize) -> bool {
        self.has_rows() && usize::try_from(self.row_stride).is_ok_and(|stride| stride == width)
    }

    /// Element (i, j).
    ///
    /// # Safety
    /// It lies inside a live allocation that nobody writes meanwhile.
    pub unsafe fn value(self, i: usize, j: usize) -> f32 {
        // SAFETY: promised by the caller.
        unsafe { self.at(i, j).data.read() }
    }

    /// Prefetches what lies around element (i, j).
    #[inline(always)]
    pub fn prefetch(self, i: usize, j: usize) {
        prefetch(self.at(i, j).data);
    }

    /// Writes element (i, j).
    ///
    /// # Safety
    /// It lies inside a live allocation that may be written and that nobody else touches meanwhile.
    pub unsafe fn set(self, i: usize, j: usize, value: f32) {
        // SAFETY: promised by the caller.
        unsafe { self.at(i, j).data.write(value) }
    }

    /// The transpose: the same memory with its strides exchanged.
    pub fn t(self) -> Self {
        Self { row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// If debug assertions are on, reads both ends of a row, so that a sanitizer sees the access. pulp reads and writes
/// partial vectors with instructions that no sanitizer knows.
///
/// # Safety
/// The row lies inside a live allocation that nobody else writes meanwhile.
#[inline(always)]
unsafe fn look_at_ends(data: *const f32, length: usize) {
    if cfg!(debug_assertions) && length > 0 {
        let data = data.cast::<MaybeUninit<f32>>();
        // SAFETY: promised by the caller; memory about to be written for the first time may be uninitialised.
        let _ends = unsafe { (data.read_volatile(), data.add(length - 1).read_volatile()) };
    }
}

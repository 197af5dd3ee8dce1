//! Strided f32 matrix products on slices, for kernels that read heads in place or write into parts of a buffer.

#![allow(unsafe_code, reason = "matrix products on strided parts of slices, which tasks write side by side")]

use super::fast_math::vectorised;
use super::thin;
use super::widen::Values;
use gemm::Parallelism;
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;

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
        let length = rows.checked_mul(row_stride).expect("a matrix larger than memory");
        let mut values = Vec::with_capacity(length);
        let data = values.as_mut_ptr();
        (Self { data, row_stride: row_stride as isize, col_stride: 1 }, Fresh(values, length))
    }

    /// The part that starts at row `i`, column `j`. Stays inside the same allocation by the promise of [`product`].
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

    /// Asks for what lies around element (i, j).
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

/// Where debug assertions are on: reads both ends of a row, as a sanitizer sees it. pulp reads and writes what is less than
/// a vector with instructions that no sanitizer knows of.
///
/// # Safety
/// The row lies inside a live allocation that nobody else writes meanwhile.
#[inline(always)]
unsafe fn look_at_ends(data: *const f32, length: usize) {
    if cfg!(debug_assertions) && length > 0 {
        let data = data.cast::<MaybeUninit<f32>>();
        // SAFETY: promised by the caller; what is written for the first time may hold nothing yet.
        let _ends = unsafe { (data.read_volatile(), data.add(length - 1).read_volatile()) };
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

/// Multiplications that one thread does on its own.
const SMALL_PRODUCT: usize = 1 << 19;
/// The narrowest part of a product that a thread takes, and the one from which on there are two for each thread. Wide
/// enough for the sums of every part to be made as they are in the whole.
const NARROW: usize = 96;
const WIDE: usize = 320;

/// As [`product`], on every thread: parts of the columns, or of the rows too where columns are few, side by side. gemm's
/// own threads wait for one that packs b, and for each other after every few hundred of k.
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
    // For a few rows or columns gemm has other ways, whose sums depend on how many these are.
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

/// Up to so many rows of activations, a product with a weight is a matter of reading the weight once.
pub const FEW_ROWS: usize = 4;
/// Weight rows in a task of such a product.
const TASK_ROWS: usize = 16;

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
    if w.transposed && m <= FEW_ROWS && a.col_stride == 1 && !accumulate && !matches!(w.values, Values::F16(_)) {
        // SAFETY: promised by the caller.
        return unsafe { few_rows(m, a, &[(w, out)]) };
    }
    let product = |sizes: (usize, usize, usize), a: Matrix, b: Matrix, out: Matrix, accumulate: bool| {
        // SAFETY: promised by the caller.
        unsafe {
            if !thin::product(sizes, a, b, out, accumulate) {
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

/// out = a · wᵀ for a few rows of a and any number of (w, out), f32 or bf16, in one go: every row of w is read once, as
/// fast as memory gives it.
///
/// # Safety
/// As [`product`], with m rows of a whose elements are contiguous.
pub unsafe fn few_rows(m: usize, a: Matrix, parts: &[(Weight, Matrix)]) {
    let tasks: Vec<(usize, usize)> = parts
        .iter()
        .enumerate()
        .flat_map(|(part, (w, _))| (0..w.rows).step_by(TASK_ROWS).map(move |first| (part, first)))
        .collect();
    tasks.par_iter().for_each(|&(part, first)| {
        let (w, out) = parts[part];
        let elements = first * w.cols..(first + TASK_ROWS).min(w.rows) * w.cols;
        let out = out.at(0, first);
        // SAFETY: promised by the caller; this task alone writes these columns of out.
        unsafe {
            match w.values {
                Values::F32(values) => rows_of(m, a, (&values[elements], w.cols), out, |x| x),
                Values::Bf16(values) => {
                    // bf16 is the upper half of an f32.
                    rows_of(m, a, (&values[elements], w.cols), out, |x| f32::from_bits(u32::from(x.to_bits()) << 16));
                }
                Values::F16(values) => rows_of(m, a, (&values[elements], w.cols), out, |x| x.to_f32()),
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
            unsafe { out.at(i, j).data.write(dot(w, x, wide)) };
        }
    }
}

/// Asks for the cache line at an address that will be read soon. Nothing is read here: any address will do.
#[inline(always)]
fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch does not fault, and SSE is always there.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Bytes between what is read and what is asked for meanwhile. The processor's own prefetching ends with each page of 4 KiB:
/// two threads read 41 to 46 GB/s without this and 52 to 54 with it, the best of 512 to 4096 bytes.
const AHEAD: usize = 2048;

/// Asks for what lies [`AHEAD`] of `chunk`.
#[inline(always)]
fn prefetch_after<T>(chunk: &[T]) {
    for line in (0..size_of_val(chunk)).step_by(64) {
        prefetch(chunk.as_ptr().cast::<u8>().wrapping_add(AHEAD + line));
    }
}

/// ⟨w, x⟩ in 64 lanes.
#[inline(always)]
pub fn dot<T: Copy>(w: &[T], x: &[f32], wide: impl Fn(T) -> f32) -> f32 {
    vectorised!({
        let mut lanes = [0f32; 64];
        let (w_chunks, x_chunks) = (w.chunks_exact(64), x.chunks_exact(64));
        let rest: f32 = w_chunks.remainder().iter().zip(x_chunks.remainder()).map(|(w, x)| wide(*w) * x).sum();
        for (w, x) in w_chunks.zip(x_chunks) {
            prefetch_after(w);
            for i in 0..64 {
                lanes[i] += wide(w[i]) * x[i];
            }
        }
        // Halved until one is left: a sum one by one would take longer than a row of the weight does.
        let mut width = 32;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0] + rest
    })
}

#[cfg(test)]
mod tests;

//! f32 products with one side of at most [`THIN`]: LoRA's x Aᵀ, dy B and dyᵀ (x Aᵀ), its updates of y and dx, and the
//! penalty's products with U; and those of a few sequences' tokens with a weight. A GEMM packs its operands first, which here takes
//! longer than the product.
//!
//! With X and Out [m, n] large, and thin Z [m, r] and B [r, n], r in blocks of [`BLOCK`] padded by zeros:
//!
//! ```text
//! columns   Xᵀ Z     [n, r]    sums over rows: a panel of columns in registers, row by row
//! dots      X Bᵀ     [m, r]    sums over columns: a few rows at once
//! update    Z B      [m, n]    written or added
//! ```
//!
//! Each reads X, or reads and writes Out, once. Tasks are columns or rows, whose sums do not depend on the number of
//! threads.

#![allow(unsafe_code, reason = "matrices inside others' memory, parts of which tasks write side by side")]

mod operands;

use super::matrix::Matrix;
use super::widen::Values;
use operands::{BLOCK, GROUP, Grouped, Padded};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// The largest thin side that is faster without a GEMM.
const THIN: usize = 16;
/// Vectors of a row handled at once if there are registers for them: with [`BLOCK`] columns, 24 sums.
const PANEL: usize = 3;
/// Rows that one panel covers before the next one does, so that they are read in memory order. Those of the next turn
/// are prefetched meanwhile.
const COLUMN_ROWS: usize = 64;
/// As [`COLUMN_ROWS`], for an output, which is also written.
const UPDATE_ROWS: usize = 32;
/// Multiplications in a task.
const TASK: usize = 1 << 20;

/// out = a · b, or out += a · b when `accumulate`, if these kernels are meant for the product, and says so; a: m × k,
/// b: k × n.
///
/// # Safety
/// As [`super::gemm::product`].
pub unsafe fn product((m, n, k): (usize, usize, usize), a: Matrix, b: Matrix, out: Matrix, accumulate: bool) -> bool {
    let thin = |side: usize| (1..=THIN).contains(&side);
    if m <= THIN || !out.has_rows() {
        return false;
    }
    // SAFETY: whole matrices, by the caller's promise; the output is this call's alone.
    unsafe {
        if thin(k) && n > THIN {
            update(&Padded::new(a, m, k), &Padded::transposed(b, k, n), (m, n), out, accumulate);
        } else if thin(n) && k > THIN && !accumulate && a.has_rows() {
            dots((m, k), a, &Grouped::new(b, k, n), n, out);
        } else if thin(n) && k > THIN && !accumulate && a.t().has_rows() {
            columns((k, m), a.t(), &Padded::new(b, k, n), n, out);
        } else {
            return false;
        }
    }
    true
}

/// The most rows of x, and the most of its values, for [`by_rows`].
const CACHED_ROWS: usize = 32;
const CACHED: usize = 1 << 18;

/// out = x · wᵀ for some rows of x, if this kernel is meant for the product, and says so; x: m × k, w: n × k, row by row. All of x lies
/// in a cache while each row of w is read, and widened if it is not f32, once: where x is that small, packing w for a GEMM takes longer
/// than the product.
///
/// # Safety
/// As [`super::gemm::product`].
pub unsafe fn by_rows((m, n, k): (usize, usize, usize), x: Matrix, w: Values, out: Matrix) -> bool {
    let width = m.next_multiple_of(BLOCK);
    if m > CACHED_ROWS || width * k > CACHED || n.min(k) <= THIN {
        return false;
    }
    // SAFETY: all of x, by the caller's promise.
    let x = unsafe { Grouped::new(x.t(), k, m) };
    in_tasks(n, width * k, 4 * PANEL, |rows| {
        let part = w.wide(rows.start * k..rows.end * k);
        let (part, out) = (Matrix::read(&part, 0, k), out.at(0, rows.start).t());
        Arch::new().dispatch(Dots { rows: 0..rows.len(), x: part, b: &x, r: m, out });
    });
    true
}

/// Vectors of a row that a panel takes.
const fn panel<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { PANEL } else { 1 }
}

/// Consecutive ranges of `step`.
fn ranges(range: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(step).map(move |start| start..(start + step).min(end))
}

/// Runs `task` on ranges of 0..length of about [`TASK`] multiplications, with `each` multiplications per index, in
/// whole `unit`s.
fn in_tasks(length: usize, each: usize, unit: usize, task: impl Fn(Range<usize>) + Send + Sync) {
    let all: Vec<Range<usize>> = ranges(0..length, (TASK / each.max(1)).next_multiple_of(unit).max(unit)).collect();
    if let [one] = all.as_slice() {
        return task(one.clone());
    }
    all.into_par_iter().for_each(task);
}

/// V vectors, or a partial one.
#[inline(always)]
fn load<S: Simd, const V: usize>(simd: S, values: &[f32]) -> [S::f32s; V] {
    let (whole, rest) = S::as_simd_f32s(values);
    let mut vectors = [simd.splat_f32s(0.0); V];
    if whole.len() == V {
        vectors.copy_from_slice(whole);
    } else {
        vectors[0] = simd.partial_load_f32s(rest);
    }
    vectors
}

#[inline(always)]
fn store<S: Simd, const V: usize>(simd: S, lanes: &[S::f32s; V], values: &mut [f32]) {
    let (whole, rest) = S::as_mut_simd_f32s(values);
    if whole.len() == V {
        whole.copy_from_slice(lanes);
    } else {
        simd.partial_store_f32s(rest, lanes[0]);
    }
}

// ---- columns: xᵀ z -----------------------------------------------------------------------------------------------

/// out[j, c] = Σ_i x[i, j] z[i, c] for c < r; x: rows × width.
///
/// # Safety
/// As [`product`].
unsafe fn columns((rows, width): (usize, usize), x: Matrix, z: &Padded, r: usize, out: Matrix) {
    // Whole panels, whatever the vector's length.
    in_tasks(width, rows * z.width, 16 * PANEL, |range| {
        let mut sums = vec![0f32; z.width * range.len()];
        Arch::new().dispatch(Columns { rows, x: x.at(0, range.start), z, width: range.len(), sums: &mut sums });
        for (c, sums) in sums.chunks_exact(range.len()).take(r).enumerate() {
            for (j, sum) in range.clone().zip(sums) {
                // SAFETY: only this task writes these rows.
                unsafe { out.set(j, c, *sum) };
            }
        }
    });
}

struct Columns<'a> {
    rows: usize,
    x: Matrix,
    z: &'a Padded<'a>,
    width: usize,
    /// [thin side, width], from zeros
    sums: &'a mut [f32],
}

impl WithSimd for Columns<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        for rows in ranges(0..self.rows, COLUMN_ROWS) {
            for block in 0..self.z.blocks() {
                let mut j = 0;
                if panel::<S>() == PANEL {
                    while j + PANEL * S::F32_LANES <= self.width {
                        self.panel::<S, PANEL>(simd, rows.clone(), block, j);
                        j += PANEL * S::F32_LANES;
                    }
                }
                while j < self.width {
                    self.panel::<S, 1>(simd, rows.clone(), block, j);
                    j += S::F32_LANES;
                }
            }
        }
    }
}

impl Columns<'_> {
    /// Adds the rows' products to V vectors of columns from `j` on, or to a partial one.
    #[inline(always)]
    fn panel<S: Simd, const V: usize>(&mut self, simd: S, rows: Range<usize>, block: usize, j: usize) {
        let (width, end) = (self.width, (j + V * S::F32_LANES).min(self.width));
        let sums = &mut self.sums[block * BLOCK * width..][..BLOCK * width];
        let mut lanes = [[simd.splat_f32s(0.0); V]; BLOCK];
        for (c, lanes) in lanes.iter_mut().enumerate() {
            *lanes = load::<S, V>(simd, &sums[c * width + j..c * width + end]);
        }
        for i in rows {
            for v in 0..V {
                self.x.prefetch(i + COLUMN_ROWS, j + v * S::F32_LANES);
            }
            // SAFETY: a part of row i of x, by the caller's promise to `product`.
            let values = load::<S, V>(simd, unsafe { self.x.at(0, j).row(i, end - j) });
            let z = self.z.row(i, block);
            for c in 0..BLOCK {
                let z = simd.splat_f32s(z[c]);
                for v in 0..V {
                    lanes[c][v] = simd.mul_add_e_f32s(z, values[v], lanes[c][v]);
                }
            }
        }
        for (c, lanes) in lanes.iter().enumerate() {
            store::<S, V>(simd, lanes, &mut sums[c * width + j..c * width + end]);
        }
    }
}

// ---- dots: x b ---------------------------------------------------------------------------------------------------

/// out[i, c] = Σ_j x[i, j] b[j, c] for c < r; x: rows × width.
///
/// # Safety
/// As [`product`].
unsafe fn dots((rows, width): (usize, usize), x: Matrix, b: &Grouped, r: usize, out: Matrix) {
    in_tasks(rows, width * r.next_multiple_of(BLOCK), 4 * PANEL, |rows| {
        Arch::new().dispatch(Dots { rows, x, b, r, out });
    });
}

struct Dots<'a> {
    rows: Range<usize>,
    x: Matrix,
    b: &'a Grouped,
    r: usize,
    out: Matrix,
}

impl WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let mut i = self.rows.start;
        if panel::<S>() == PANEL {
            while i + PANEL <= self.rows.end {
                self.rows::<S, PANEL>(simd, i);
                i += PANEL;
            }
        }
        while i < self.rows.end {
            self.rows::<S, 1>(simd, i);
            i += 1;
        }
    }
}

impl Dots<'_> {
    /// R rows from `i` on.
    #[inline(always)]
    fn rows<S: Simd, const R: usize>(&self, simd: S, i: usize) {
        for (block, b) in self.b.blocks().enumerate() {
            let mut lanes = [[simd.splat_f32s(0.0); BLOCK]; R];
            let mut j = 0;
            for b in b.chunks_exact(BLOCK * GROUP) {
                for first in (0..GROUP).step_by(S::F32_LANES) {
                    let mut x = [simd.splat_f32s(0.0); R];
                    let count = S::F32_LANES.min(self.b.length.saturating_sub(j));
                    for (row, x) in x.iter_mut().enumerate() {
                        self.x.prefetch(i + row + R * 2, j);
                        // SAFETY: a part of a row of x, by the caller's promise to `product`.
                        [*x] = load::<S, 1>(simd, unsafe { self.x.at(0, j).row(i + row, count) });
                    }
                    for c in 0..BLOCK {
                        let [b] = load::<S, 1>(simd, &b[c * GROUP + first..][..S::F32_LANES]);
                        for row in 0..R {
                            lanes[row][c] = simd.mul_add_e_f32s(x[row], b, lanes[row][c]);
                        }
                    }
                    j += S::F32_LANES;
                }
            }
            for (row, lanes) in lanes.iter().enumerate() {
                for (c, lanes) in lanes.iter().enumerate().take(self.r - block * BLOCK) {
                    let sum = simd.reduce_sum_f32s(*lanes);
                    // SAFETY: only the task of these rows writes them.
                    unsafe { self.out.set(i + row, block * BLOCK + c, sum) };
                }
            }
        }
    }
}

// ---- update: z b -------------------------------------------------------------------------------------------------

/// out[i, j] = Σ_c z[i, c] b[c, j], or added to it; out: m × n.
///
/// # Safety
/// As [`product`].
unsafe fn update(z: &Padded, b: &Padded, (m, n): (usize, usize), out: Matrix, accumulate: bool) {
    in_tasks(m, n * z.width, UPDATE_ROWS, |rows| {
        Arch::new().dispatch(Update { rows, z, b, n, out, accumulate });
    });
}

struct Update<'a> {
    rows: Range<usize>,
    z: &'a Padded<'a>,
    b: &'a Padded<'a>,
    n: usize,
    out: Matrix,
    accumulate: bool,
}

impl WithSimd for Update<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for rows in ranges(self.rows.clone(), UPDATE_ROWS) {
            for block in 0..self.z.blocks() {
                let add = self.accumulate || block > 0;
                let mut j = 0;
                if panel::<S>() == PANEL {
                    while j + PANEL * S::F32_LANES <= self.n {
                        self.panel::<S, PANEL>(simd, rows.clone(), block, j, add);
                        j += PANEL * S::F32_LANES;
                    }
                }
                while j < self.n {
                    self.panel::<S, 1>(simd, rows.clone(), block, j, add);
                    j += S::F32_LANES;
                }
            }
        }
    }
}

impl Update<'_> {
    #[inline(always)]
    fn panel<S: Simd, const V: usize>(&self, simd: S, rows: Range<usize>, block: usize, j: usize, add: bool) {
        let end = (j + V * S::F32_LANES).min(self.n);
        let mut b = [[simd.splat_f32s(0.0); V]; BLOCK];
        for (c, b) in b.iter_mut().enumerate() {
            *b = load::<S, V>(simd, self.b.part(block * BLOCK + c, j..end));
        }
        for i in rows {
            for v in 0..V {
                self.out.prefetch(i + UPDATE_ROWS, j + v * S::F32_LANES);
            }
            // SAFETY: a part of row i of the output, which this task alone touches.
            let out = unsafe { self.out.at(0, j).row_mut(i, end - j) };
            let mut lanes = if add { load::<S, V>(simd, out) } else { [simd.splat_f32s(0.0); V] };
            let z = self.z.row(i, block);
            for c in 0..BLOCK {
                let z = simd.splat_f32s(z[c]);
                for v in 0..V {
                    lanes[v] = simd.mul_add_e_f32s(z, b[c][v], lanes[v]);
                }
            }
            store::<S, V>(simd, &lanes, out);
        }
    }
}

#[cfg(test)]
mod tests;

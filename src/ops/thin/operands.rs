//! Thin matrices laid out for the kernels of [`super`]: whole blocks, padded with zeros.

#![allow(unsafe_code, reason = "reads a matrix inside others' memory")]

use crate::ops::matrix::Matrix;
use std::borrow::Cow;
use std::ops::Range;

/// Columns of the thin side handled at once.
pub const BLOCK: usize = 8;
/// Columns of a row that lie together in [`Grouped`]: the longest vector's, or several shorter ones.
pub const GROUP: usize = 16;

/// Thin rows: a whole number of blocks each, padded with zeros.
pub struct Padded<'a> {
    values: Cow<'a, [f32]>,
    pub width: usize,
}

impl<'a> Padded<'a> {
    /// A thin matrix, borrowed if it can be read in place.
    ///
    /// # Safety
    /// It lies inside a live allocation that nobody writes meanwhile.
    pub unsafe fn new(matrix: Matrix, rows: usize, columns: usize) -> Self {
        let width = columns.next_multiple_of(BLOCK);
        if matrix.has_rows_of(width) && width == columns {
            // SAFETY: promised by the caller: rows of this width without a gap.
            return Self { values: Cow::Borrowed(unsafe { matrix.row(0, rows * width) }), width };
        }
        let mut values = vec![0f32; rows * width];
        for (i, row) in values.chunks_exact_mut(width).enumerate() {
            for (j, value) in row[..columns].iter_mut().enumerate() {
                // SAFETY: promised by the caller.
                *value = unsafe { matrix.value(i, j) };
            }
        }
        Self { values: Cow::Owned(values), width }
    }

    /// A matrix of `rows` long rows, with rows of zeros after them up to a whole block.
    ///
    /// # Safety
    /// As [`Padded::new`].
    pub unsafe fn transposed(matrix: Matrix, rows: usize, width: usize) -> Self {
        let mut values = vec![0f32; rows.next_multiple_of(BLOCK) * width];
        for (i, row) in values.chunks_exact_mut(width).take(rows).enumerate() {
            for (j, value) in row.iter_mut().enumerate() {
                // SAFETY: promised by the caller.
                *value = unsafe { matrix.value(i, j) };
            }
        }
        Self { values: Cow::Owned(values), width }
    }

    /// Blocks of a row.
    pub fn blocks(&self) -> usize {
        self.width / BLOCK
    }

    /// A part of row `i`.
    #[inline(always)]
    pub fn part(&self, i: usize, columns: Range<usize>) -> &[f32] {
        &self.values[i * self.width..][columns]
    }

    /// Row `i` of a block.
    #[inline(always)]
    pub fn row(&self, i: usize, block: usize) -> &[f32] {
        self.part(i, block * BLOCK..(block + 1) * BLOCK)
    }
}

/// The transpose of a thin matrix for [`dots`]: for each block of its columns, [`GROUP`] values of the first, as many
/// of the next, and so on; padded with zeros.
pub struct Grouped {
    values: Vec<f32>,
    /// Values in a column.
    pub length: usize,
}

impl Grouped {
    /// # Safety
    /// As [`Padded::new`].
    pub unsafe fn new(matrix: Matrix, length: usize, columns: usize) -> Self {
        let chunk = BLOCK * length.next_multiple_of(GROUP);
        let mut values = vec![0f32; columns.div_ceil(BLOCK) * chunk];
        for c in 0..columns {
            let column = &mut values[c / BLOCK * chunk + c % BLOCK * GROUP..];
            for (group, values) in column.chunks_mut(BLOCK * GROUP).enumerate() {
                for (i, value) in (group * GROUP..length).zip(&mut values[..GROUP]) {
                    // SAFETY: promised by the caller.
                    *value = unsafe { matrix.value(i, c) };
                }
            }
        }
        Self { values, length }
    }

    pub fn blocks(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(BLOCK * self.length.next_multiple_of(GROUP))
    }
}

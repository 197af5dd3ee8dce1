//! Dot products with rows of blocks as they are: nothing is widened to memory, and what all values of a group share is
//! applied to their sum.
//!
//! A value is s·q − m, with s and m of its group, so that Σ value·x = s Σ q·x − m Σ x. Equal to the product with the widened
//! values up to the rounding of sums.

use super::parts::Parts;
use super::{GgmlType, Work};
use crate::quant::vector::Vector;
use crate::vectors::prefetch_after;
use pulp::{Arch, Simd, WithSimd};

impl GgmlType {
    /// `out[i]` = row i · x for rows of whole blocks of a quantised type, whose factors are finite.
    pub fn dots(self, rows: &[u8], x: &Vector, out: &mut [f32]) {
        self.dots_at(Arch::new(), rows, x, out);
    }

    /// As [`GgmlType::dots`], with the instructions of `arch`.
    pub(super) fn dots_at(self, arch: Arch, rows: &[u8], x: &Vector, out: &mut [f32]) {
        let sums = match self {
            Self::Q2K => Some(x.sums_of_16()),
            Self::Q4_1 | Self::Q5_1 | Self::Q4K | Self::Q5K => Some(x.sums_of_32()),
            _ => None,
        };
        self.in_blocks(Dots { arch, rows, x: x.values(), sums, out });
    }
}

/// For [`GgmlType::dots`].
struct Dots<'a> {
    arch: Arch,
    rows: &'a [u8],
    x: &'a [f32],
    /// Of x over groups, for types with minima.
    sums: Option<&'a [f32]>,
    out: &'a mut [f32],
}

impl Work for Dots<'_> {
    fn with<const BYTES: usize, const WIDTH: usize, const GROUPS: usize>(
        self,
        take_apart: impl Fn(&[u8; BYTES]) -> Parts<WIDTH, GROUPS>,
    ) {
        self.arch.dispatch(Rows {
            blocks: self.rows.as_chunks().0,
            x: self.x.as_chunks().0.as_chunks().0,
            sums: self.sums.map(|sums| sums.as_chunks().0),
            out: self.out,
            take_apart,
        });
    }
}

/// [`Dots`] of a type.
struct Rows<'a, const BYTES: usize, const WIDTH: usize, const GROUPS: usize, F> {
    /// Row after row.
    blocks: &'a [[u8; BYTES]],
    x: &'a [[[f32; WIDTH]; GROUPS]],
    sums: Option<&'a [[f32; GROUPS]]>,
    out: &'a mut [f32],
    take_apart: F,
}

impl<const BYTES: usize, const WIDTH: usize, const GROUPS: usize, F> WithSimd for Rows<'_, BYTES, WIDTH, GROUPS, F>
where
    F: Fn(&[u8; BYTES]) -> Parts<WIDTH, GROUPS>,
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (row, out) in self.blocks.chunks(self.x.len().max(1)).zip(self.out) {
            // Two sums, so that one does not wait for the other.
            let (mut one, mut other, mut minima) = (simd.splat_f32s(0.0), simd.splat_f32s(0.0), [0f32; GROUPS]);
            for (i, (block, x)) in row.iter().zip(self.x).enumerate() {
                prefetch_after(block);
                let parts = (self.take_apart)(block);
                let scaled = |g: usize, sum: S::f32s| {
                    let scale = simd.splat_f32s(parts.scales[g]);
                    simd.mul_add_e_f32s(scale, products(simd, &parts.wide(g), &x[g]), sum)
                };
                for g in (0..GROUPS).step_by(2) {
                    one = scaled(g, one);
                    if g + 1 < GROUPS {
                        other = scaled(g + 1, other);
                    }
                }
                if let Some(sums) = self.sums {
                    for g in 0..GROUPS {
                        minima[g] += parts.minima[g] * sums[i][g];
                    }
                }
            }
            *out = simd.reduce_sum_f32s(simd.add_f32s(one, other)) - minima.iter().sum::<f32>();
        }
    }
}

/// Σ q·x over a group, in lanes.
#[inline(always)]
fn products<S: Simd, const WIDTH: usize>(simd: S, wide: &[f32; WIDTH], x: &[f32; WIDTH]) -> S::f32s {
    let (wide, x) = (S::as_simd_f32s(wide).0, S::as_simd_f32s(x).0);
    let mut sum = simd.mul_f32s(wide[0], x[0]);
    for k in 1..x.len() {
        sum = simd.mul_add_e_f32s(wide[k], x[k], sum);
    }
    sum
}

//! Values looked up in their block's table of 16, which with AVX-512 is one register, and with AVX2 four of bytes.

#![allow(unsafe_code, reason = "vector instructions that the CPU was asked for")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(all(target_arch = "x86_64", feature = "avx512"))]
mod avx512;

use super::codes::FourBit;
#[cfg(target_arch = "x86_64")]
use super::codes::PART;
use crate::quant::vector::Vector;
use pulp::Arch;

/// Whether all counts are of whole parts.
#[cfg(target_arch = "x86_64")]
fn are_whole(counts: &[usize]) -> bool {
    counts.iter().all(|count| count.is_multiple_of(PART))
}

impl FourBit {
    /// `out.len()` values from `start` on.
    pub fn widen(&self, start: usize, out: &mut [f32]) {
        self.widen_at(Arch::new(), start, out);
    }

    /// As [`FourBit::widen`], with the instructions of `arch` where they serve.
    pub(super) fn widen_at(&self, arch: Arch, start: usize, out: &mut [f32]) {
        match arch {
            // SAFETY: the CPU has these instructions, of which its token is the proof.
            #[cfg(all(target_arch = "x86_64", feature = "avx512"))]
            Arch::V4(_) if start.is_multiple_of(2) => unsafe { avx512::widen(self, start, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Arch::V3(_) if are_whole(&[start, out.len(), self.block()]) => unsafe { avx2::widen(self, start, out) },
            _ => one_by_one(self, start, out.len(), |i, value| out[i] = value),
        }
    }

    /// `out[i]` = Σ value · x over the `columns` values from `start` + i · `columns` on.
    pub fn dots(&self, start: usize, columns: usize, x: &Vector, out: &mut [f32]) {
        self.dots_at(Arch::new(), (start, columns), x, out);
    }

    /// As [`FourBit::dots`], with the instructions of `arch` where they serve.
    pub(super) fn dots_at(&self, arch: Arch, (start, columns): (usize, usize), x: &Vector, out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        let whole = are_whole(&[start, columns, self.block()]);
        match arch {
            // SAFETY: the CPU has these instructions, of which its token is the proof.
            #[cfg(all(target_arch = "x86_64", feature = "avx512"))]
            Arch::V4(_) if whole => unsafe { avx512::dots(self, start, columns, x, out) },
            #[cfg(all(target_arch = "x86_64", feature = "avx512"))]
            Arch::V4(_) if start.is_multiple_of(2) && columns.is_multiple_of(2) => {
                for (i, out) in out.iter_mut().enumerate() {
                    // SAFETY: as above.
                    *out = unsafe { avx512::dot(self, start + i * columns, x.values()) };
                }
            }
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Arch::V3(_) if whole => unsafe { avx2::dots(self, start, columns, x, out) },
            _ => {
                for (i, out) in out.iter_mut().enumerate() {
                    let mut lanes = [0f32; 16];
                    one_by_one(self, start + i * columns, columns, |j, value| lanes[j % 16] += value * x.values()[j]);
                    *out = lanes.iter().sum();
                }
            }
        }
    }
}

/// Calls `take` with the number and the value of each of `count` values from `start` on.
#[inline(always)]
fn one_by_one(matrix: &FourBit, start: usize, count: usize, mut take: impl FnMut(usize, f32)) {
    for (i, part) in matrix.in_blocks(start..start + count) {
        let table = matrix.table_of(i);
        for at in part {
            take(at - start, table[matrix.code(at)]);
        }
    }
}

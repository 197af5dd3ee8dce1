//! Values looked up in their block's table of 16, which with AVX-512 is one register.

#![allow(unsafe_code, reason = "vector instructions that the CPU was asked for")]

use super::codes::FourBit;

impl FourBit {
    /// `out.len()` values from `start` on.
    pub fn widen(&self, start: usize, out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if start.is_multiple_of(2) && std::is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU has these instructions.
            return unsafe { avx512::widen(self, start, out) };
        }
        one_by_one(self, start, out.len(), |i, value| out[i] = value);
    }

    /// Σ value · x over `x.len()` values from `start` on.
    pub fn dot(&self, start: usize, x: &[f32]) -> f32 {
        #[cfg(target_arch = "x86_64")]
        if start.is_multiple_of(2) && std::is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU has these instructions.
            return unsafe { avx512::dot(self, start, x) };
        }
        let mut lanes = [0f32; 16];
        one_by_one(self, start, x.len(), |i, value| lanes[i % 16] += value * x[i]);
        lanes.iter().sum()
    }
}

/// Calls `take` with the number and the value of each of `count` values from `start` on.
#[inline(always)]
fn one_by_one(matrix: &FourBit, start: usize, count: usize, mut take: impl FnMut(usize, f32)) {
    for (i, part) in matrix.in_blocks(start..start + count) {
        let table = matrix.table_of(i);
        for at in part {
            take(at - start, table[code(&matrix.packed, at)]);
        }
    }
}

/// The code of value `i`: the first of a byte is its high half.
#[inline(always)]
fn code(packed: &[u8], i: usize) -> usize {
    let byte = packed[i / 2];
    usize::from(if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 })
}

/// From an even start on.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{FourBit, code};
    use std::arch::x86_64::*;

    /// Vectors handled at once: sums of their own, so that none waits for another.
    const SUMS: usize = 4;
    const LANES: usize = 16;

    /// Eight bytes as 16 codes in the low bits of a lane each. The bits above are left: looking up reads four.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn codes(bytes: &[u8]) -> __m512i {
        let bytes = bytes.first_chunk().map_or(0, |bytes| i64::from_le_bytes(*bytes));
        let each = _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(bytes));
        _mm512_or_si512(_mm512_srli_epi64::<4>(each), _mm512_slli_epi64::<32>(each))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(values: &[f32; LANES]) -> __m512 {
        // SAFETY: 16 values.
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }

    #[target_feature(enable = "avx512f")]
    pub fn widen(matrix: &FourBit, start: usize, out: &mut [f32]) {
        let mut rest = out;
        for (i, part) in matrix.in_blocks(start..start + rest.len()) {
            let (now, later) = rest.split_at_mut(part.len());
            let table = matrix.table_of(i);
            let register = load(&table);
            let (vectors, single) = now.as_chunks_mut::<LANES>();
            let mut at = part.start;
            for out in vectors {
                let values = _mm512_permutexvar_ps(codes(&matrix.packed[at / 2..]), register);
                // SAFETY: 16 values.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) };
                at += LANES;
            }
            for out in single {
                *out = table[code(&matrix.packed, at)];
                at += 1;
            }
            rest = later;
        }
    }

    #[target_feature(enable = "avx512f")]
    pub fn dot(matrix: &FourBit, start: usize, x: &[f32]) -> f32 {
        let mut sums = [_mm512_setzero_ps(); SUMS];
        let (mut rest, mut of_single) = (x, 0f32);
        for (i, part) in matrix.in_blocks(start..start + x.len()) {
            let (now, later) = rest.split_at(part.len());
            let table = matrix.table_of(i);
            let register = load(&table);
            let (vectors, single) = now.as_chunks::<LANES>();
            let (fours, few) = vectors.as_chunks::<SUMS>();
            let mut at = part.start;
            for four in fours {
                let bytes = &matrix.packed[at / 2..][..SUMS * LANES / 2];
                for (j, x) in four.iter().enumerate() {
                    let values = _mm512_permutexvar_ps(codes(&bytes[j * LANES / 2..]), register);
                    sums[j] = _mm512_fmadd_ps(values, load(x), sums[j]);
                }
                at += SUMS * LANES;
            }
            for x in few {
                let values = _mm512_permutexvar_ps(codes(&matrix.packed[at / 2..]), register);
                sums[0] = _mm512_fmadd_ps(values, load(x), sums[0]);
                at += LANES;
            }
            for x in single {
                of_single += table[code(&matrix.packed, at)] * x;
                at += 1;
            }
            rest = later;
        }
        let [a, b, c, d] = sums;
        _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d))) + of_single
    }
}

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
    use super::super::codes::Rounding;
    use super::{FourBit, code};
    use std::arch::x86_64::*;

    /// Vectors handled at once: sums of their own, so that none waits for another.
    const SUMS: usize = 4;
    const LANES: usize = 16;
    /// Blocks whose scales are read at once.
    const BATCH: usize = 64;

    /// Eight bytes as 16 codes in the low bits of a lane each. The bits above are left: looking up reads four.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn codes(bytes: &[u8; LANES / 2]) -> __m512i {
        let each = _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(i64::from_le_bytes(*bytes)));
        _mm512_or_si512(_mm512_srli_epi64::<4>(each), _mm512_slli_epi64::<32>(each))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(values: &[f32; LANES]) -> __m512 {
        // SAFETY: 16 values.
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }

    /// Calls `take` with the part of each block that `count` values from `start` on reach: its number, its table, the place of
    /// its first value and how many they are. Nothing is divided but once for many blocks.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn each_block(matrix: &FourBit, start: usize, count: usize, mut take: impl FnMut(usize, __m512, usize, usize)) {
        let (block, base, end) = (matrix.block(), load(matrix.table()), start + count);
        let (mut i, mut at) = (start / block, start);
        let mut next = (i + 1) * block;
        let mut scales = [0f32; BATCH];
        while at < end {
            let several = (end - i * block).div_ceil(block).min(BATCH);
            matrix.scales().read(i, &mut scales[..several]);
            for scale in &scales[..several] {
                let table = match matrix.rounding() {
                    Rounding::F32 => _mm512_mul_ps(base, _mm512_set1_ps(*scale)),
                    _ => load(&matrix.table_of(i)),
                };
                let length = next.min(end) - at;
                take(i, table, at, length);
                (i, at, next) = (i + 1, at + length, next + block);
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    pub fn widen(matrix: &FourBit, start: usize, out: &mut [f32]) {
        each_block(matrix, start, out.len(), |i, table, at, length| {
            let (vectors, single) = out[at - start..][..length].as_chunks_mut::<LANES>();
            let bytes = matrix.packed[at / 2..].as_chunks::<{ LANES / 2 }>().0;
            for (out, bytes) in vectors.iter_mut().zip(bytes) {
                let values = _mm512_permutexvar_ps(codes(bytes), table);
                // SAFETY: 16 values.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) };
            }
            if !single.is_empty() {
                let (table, first) = (matrix.table_of(i), at + length - single.len());
                single.iter_mut().zip(first..).for_each(|(out, at)| *out = table[code(&matrix.packed, at)]);
            }
        });
    }

    #[target_feature(enable = "avx512f")]
    pub fn dot(matrix: &FourBit, start: usize, x: &[f32]) -> f32 {
        let (mut sums, mut of_single) = ([_mm512_setzero_ps(); SUMS], 0f32);
        each_block(matrix, start, x.len(), |i, table, at, length| {
            let (vectors, single) = x[at - start..][..length].as_chunks::<LANES>();
            let bytes = matrix.packed[at / 2..].as_chunks::<{ LANES / 2 }>().0;
            for (four, bytes) in vectors.chunks(SUMS).zip(bytes.chunks(SUMS)) {
                for ((sum, x), bytes) in sums.iter_mut().zip(four).zip(bytes) {
                    *sum = _mm512_fmadd_ps(_mm512_permutexvar_ps(codes(bytes), table), load(x), *sum);
                }
            }
            if !single.is_empty() {
                let (table, first) = (matrix.table_of(i), at + length - single.len());
                of_single += single.iter().zip(first..).map(|(x, at)| table[code(&matrix.packed, at)] * x).sum::<f32>();
            }
        });
        let [a, b, c, d] = sums;
        _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d))) + of_single
    }
}

//! Values looked up in their block's table of 16, which with AVX-512 is one register, and with AVX2 four of bytes.

#![allow(unsafe_code, reason = "vector instructions that the CPU was asked for")]

use super::codes::FourBit;
use crate::quant::vector::Vector;

impl FourBit {
    /// `out.len()` values from `start` on.
    pub fn widen(&self, start: usize, out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        {
            if start.is_multiple_of(2) && std::is_x86_feature_detected!("avx512f") {
                // SAFETY: the CPU has these instructions.
                return unsafe { avx512::widen(self, start, out) };
            }
            if avx2::serves(&[start, out.len(), self.block()]) {
                // SAFETY: the CPU has these instructions.
                return unsafe { avx2::widen(self, start, out) };
            }
        }
        one_by_one(self, start, out.len(), |i, value| out[i] = value);
    }

    /// `out[i]` = Σ value · x over the `columns` values from `start` + i · `columns` on.
    pub fn dots(&self, start: usize, columns: usize, x: &Vector, out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        {
            if std::is_x86_feature_detected!("avx512f") && start.is_multiple_of(2) && columns.is_multiple_of(2) {
                for (i, out) in out.iter_mut().enumerate() {
                    // SAFETY: the CPU has these instructions.
                    *out = unsafe { avx512::dot(self, start + i * columns, x.values()) };
                }
                return;
            }
            if avx2::serves(&[start, columns, self.block()]) {
                // SAFETY: the CPU has these instructions.
                return unsafe { avx2::dots(self, start, columns, x, out) };
            }
        }
        for (i, out) in out.iter_mut().enumerate() {
            let mut lanes = [0f32; 16];
            one_by_one(self, start + i * columns, columns, |j, value| lanes[j % 16] += value * x.values()[j]);
            *out = lanes.iter().sum();
        }
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

/// Values of a table, byte by byte: a shuffle of bytes looks up 32 codes in one of the four.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::super::codes::Rounding;
    use super::FourBit;
    use crate::quant::vector::Vector;
    use std::arch::x86_64::*;

    /// Values handled at once, of one block.
    pub const PART: usize = 64;
    /// Parts whose scales are read at once.
    const BATCH: usize = 64;

    /// Whether the CPU has the instructions, and all counts are of whole parts.
    pub fn serves(counts: &[usize]) -> bool {
        counts.iter().all(|count| count.is_multiple_of(PART))
            && std::is_x86_feature_detected!("avx2")
            && std::is_x86_feature_detected!("fma")
    }

    /// Byte b of each of 16 values, twice. (No function of the library's calls a closure here or below: it would not be compiled
    /// for these instructions.)
    type Planes = [__m256i; 4];

    #[inline]
    #[target_feature(enable = "avx2")]
    fn planes(table: &[f32; 16]) -> Planes {
        let mut bytes = [[0u8; 16]; 4];
        for (i, value) in table.iter().enumerate() {
            let [a, b, c, d] = value.to_le_bytes();
            (bytes[0][i], bytes[1][i], bytes[2][i], bytes[3][i]) = (a, b, c, d);
        }
        let mut planes = [_mm256_setzero_si256(); 4];
        for (plane, bytes) in planes.iter_mut().zip(&bytes) {
            // SAFETY: 16 bytes.
            *plane = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) });
        }
        planes
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(values: &[f32; 8]) -> __m256 {
        // SAFETY: 8 values.
        unsafe { _mm256_loadu_ps(values.as_ptr()) }
    }

    /// The values of 32 codes, in [`Vector::paired`]'s order.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn look_up(planes: &Planes, codes: __m256i) -> [__m256; 4] {
        let (a, b) = (_mm256_shuffle_epi8(planes[0], codes), _mm256_shuffle_epi8(planes[1], codes));
        let (c, d) = (_mm256_shuffle_epi8(planes[2], codes), _mm256_shuffle_epi8(planes[3], codes));
        let (low, high) = (_mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi8(c, d));
        let (low_later, high_later) = (_mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi8(c, d));
        [
            _mm256_castsi256_ps(_mm256_unpacklo_epi16(low, high)),
            _mm256_castsi256_ps(_mm256_unpackhi_epi16(low, high)),
            _mm256_castsi256_ps(_mm256_unpacklo_epi16(low_later, high_later)),
            _mm256_castsi256_ps(_mm256_unpackhi_epi16(low_later, high_later)),
        ]
    }

    /// The values at even places of a part, and those at odd ones.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn both(planes: &Planes, bytes: &[u8; PART / 2]) -> [[__m256; 4]; 2] {
        // SAFETY: 32 bytes.
        let bytes = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
        let low = _mm256_set1_epi8(15);
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low);
        [look_up(planes, high), look_up(planes, _mm256_and_si256(bytes, low))]
    }

    /// Σ value · x over 64 values of one block, in 8 sums.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn part(bytes: &[u8; PART / 2], paired: &[f32; PART], planes: &Planes) -> __m256 {
        let [even, odd] = both(planes, bytes);
        let x = paired.as_chunks::<8>().0;
        let (mut one, mut other) = (_mm256_setzero_ps(), _mm256_setzero_ps());
        for i in 0..4 {
            one = _mm256_fmadd_ps(even[i], load(&x[i]), one);
            other = _mm256_fmadd_ps(odd[i], load(&x[4 + i]), other);
        }
        _mm256_add_ps(one, other)
    }

    /// Calls `take` with the number of each of `count` parts from the `first` on, its scale, its table and its codes. The scale
    /// is 1 where the table has it already. `base`: of the table without a scale.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn each_part(
        matrix: &FourBit,
        base: &Planes,
        (first, count): (usize, usize),
        mut take: impl FnMut(usize, f32, &Planes, &[u8; PART / 2]),
    ) {
        let in_block = matrix.block() / PART;
        let codes = &matrix.packed[first * PART / 2..].as_chunks::<{ PART / 2 }>().0[..count];
        let mut scales = [0f32; BATCH];
        for (batch, codes) in codes.chunks(BATCH).enumerate() {
            let at = first + batch * BATCH;
            let (block, last) = (at / in_block, (at + codes.len() - 1) / in_block);
            matrix.scales().read(block, &mut scales[..=last - block]);
            for (i, codes) in codes.iter().enumerate() {
                let number = (at + i) / in_block - block;
                match matrix.rounding() {
                    Rounding::F32 => take(batch * BATCH + i, scales[number], base, codes),
                    _ => take(batch * BATCH + i, 1.0, &planes(&matrix.table_of(block + number)), codes),
                }
            }
        }
    }

    /// As [`FourBit::dots`], for rows and blocks of whole parts.
    #[target_feature(enable = "avx2,fma")]
    pub fn dots(matrix: &FourBit, start: usize, columns: usize, x: &Vector, out: &mut [f32]) {
        let (paired, base) = (x.paired().as_chunks::<PART>().0, planes(matrix.table()));
        for (i, out) in out.iter_mut().enumerate() {
            let mut sum = _mm256_setzero_ps();
            each_part(matrix, &base, ((start + i * columns) / PART, columns / PART), |i, scale, planes, codes| {
                sum = _mm256_fmadd_ps(_mm256_set1_ps(scale), part(codes, &paired[i], planes), sum);
            });
            let mut lanes = [0f32; 8];
            // SAFETY: 8 values.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
            *out = lanes.iter().sum();
        }
    }

    /// As [`FourBit::widen`], for whole parts.
    #[target_feature(enable = "avx2,fma")]
    pub fn widen(matrix: &FourBit, start: usize, out: &mut [f32]) {
        let out = out.as_chunks_mut::<PART>().0;
        each_part(matrix, &planes(matrix.table()), (start / PART, out.len()), |i, scale, planes, codes| {
            let [even, odd] = both(planes, codes);
            let scale = _mm256_set1_ps(scale);
            let (first, second) = out[i].split_at_mut(PART / 2);
            let quarters = first.as_chunks_mut::<8>().0.iter_mut().zip(second.as_chunks_mut::<8>().0);
            for (i, (first, second)) in quarters.enumerate() {
                let (even, odd) = (_mm256_mul_ps(even[i], scale), _mm256_mul_ps(odd[i], scale));
                let (low, high) = (_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd));
                // SAFETY: 8 values each.
                unsafe {
                    _mm256_storeu_ps(first.as_mut_ptr(), _mm256_permute2f128_ps::<0x20>(low, high));
                    _mm256_storeu_ps(second.as_mut_ptr(), _mm256_permute2f128_ps::<0x31>(low, high));
                }
            }
        });
    }
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

//! A table is one register, in which 16 codes are looked up at once.

use crate::quant::four_bit::codes::{FourBit, PART, Rounding};
use crate::quant::vector::Vector;
use crate::vectors::prefetch_after;
use std::arch::x86_64::*;

/// Vectors handled at once: sums of their own, so that none waits for another.
const SUMS: usize = 4;
const LANES: usize = 16;
/// Blocks whose scales are read at once.
const BATCH: usize = 64;
/// Rows whose lanes are added up at once.
const ROWS: usize = 4;

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

/// As [`FourBit::table_of`]. `base`: the table without a scale.
#[inline]
#[target_feature(enable = "avx512f")]
fn table_of(rounding: Rounding, base: __m512, scale: f32) -> __m512 {
    let table = _mm512_mul_ps(base, _mm512_set1_ps(scale));
    match rounding {
        Rounding::F32 => table,
        Rounding::F16 => _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(table)),
        Rounding::Bf16 => {
            // To nearest, ties to even: half of the last place that stays is added, and its last bit.
            let bits = _mm512_castps_si512(table);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            _mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(!0xffff)))
        }
    }
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
            let table = table_of(matrix.rounding(), base, *scale);
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
            single.iter_mut().zip(first..).for_each(|(out, at)| *out = table[matrix.code(at)]);
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
            of_single += single.iter().zip(first..).map(|(x, at)| table[matrix.code(at)] * x).sum::<f32>();
        }
    });
    let [a, b, c, d] = sums;
    _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d))) + of_single
}

/// As [`FourBit::dots`], for rows and blocks of whole parts.
#[target_feature(enable = "avx512f,avx512dq")]
pub fn dots(matrix: &FourBit, start: usize, columns: usize, x: &Vector, out: &mut [f32]) {
    let (x, per_row) = (x.by_lanes(), columns / PART);
    let scales = matrix.scales_of_parts(start / PART, out.len() * per_row);
    for (n, out) in out.chunks_mut(ROWS).enumerate() {
        let mut sums = [_mm512_setzero_ps(); ROWS];
        for (r, sum) in sums.iter_mut().take(out.len()).enumerate() {
            let row = n * ROWS + r;
            let codes = &matrix.packed[(start + row * columns) / 2..][..columns / 2];
            *sum = sum_of_row(matrix, codes, &scales[row * per_row..][..per_row], x);
        }
        out.copy_from_slice(&totals(sums)[..out.len()]);
    }
}

/// Σ value · x of a row, in lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn sum_of_row(matrix: &FourBit, codes: &[u8], scales: &[f32], x: &[[[f32; LANES]; 8]]) -> __m512 {
    let ((pairs, last), (scales, of_last)) = (codes.as_chunks::<PART>(), scales.as_chunks::<2>());
    let mut sum = _mm512_setzero_ps();
    for ((pair, scales), x) in pairs.iter().zip(scales).zip(x) {
        prefetch_after(pair);
        // SAFETY: 64 bytes.
        let codes = unsafe { _mm512_loadu_si512(pair.as_ptr().cast()) };
        sum = with_pair(matrix, codes, scales, x, sum);
    }
    if let ([scale], Some(codes)) = (of_last, last.first_chunk::<{ PART / 2 }>()) {
        // SAFETY: 32 bytes.
        let codes = _mm512_zextsi256_si512(unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) });
        sum = with_pair(matrix, codes, &[*scale, 0.0], &x[pairs.len()], sum);
    }
    sum
}

/// The sums of the lanes of each.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn totals([a, b, c, d]: [__m512; ROWS]) -> [f32; ROWS] {
    let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    // Four lanes each of a, b, c, d.
    let all = _mm512_add_ps(_mm512_shuffle_ps::<0b01_00_01_00>(ab, cd), _mm512_shuffle_ps::<0b11_10_11_10>(ab, cd));
    let half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps::<1>(all));
    let sums = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
    let mut out = [0f32; ROWS];
    // SAFETY: 4 values.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), sums) };
    out
}

/// `sum` + Σ value · x over two parts, whose codes are eight in each lane of a register: shifted down by 0, 4 and so on to 28
/// bits, the lowest of all lanes are looked up and multiplied with what [`Vector::by_lanes`] has for them.
#[inline]
#[target_feature(enable = "avx512f")]
fn with_pair(matrix: &FourBit, mut codes: __m512i, scales: &[f32; 2], x: &[[f32; LANES]; 8], sum: __m512) -> __m512 {
    let base = load(matrix.table());
    if matrix.rounding() == Rounding::F32 {
        let mut pair = _mm512_mul_ps(_mm512_permutexvar_ps(codes, base), load(&x[0]));
        for x in &x[1..] {
            codes = _mm512_srli_epi32::<4>(codes);
            pair = _mm512_fmadd_ps(_mm512_permutexvar_ps(codes, base), load(x), pair);
        }
        // SAFETY: two values of 4 bytes.
        let both = _mm512_castpd_ps(_mm512_set1_pd(unsafe { scales.as_ptr().cast::<f64>().read_unaligned() }));
        let scale = _mm512_permutexvar_ps(_mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0), both);
        return _mm512_fmadd_ps(scale, pair, sum);
    }
    let [one, other] = [table_of(matrix.rounding(), base, scales[0]), table_of(matrix.rounding(), base, scales[1])];
    // Bit 4 of an index is the table that it looks in.
    let table = _mm512_maskz_set1_epi32(0xff00, 16);
    let mut sum = sum;
    for x in x {
        let index = _mm512_or_si512(_mm512_and_si512(codes, _mm512_set1_epi32(15)), table);
        sum = _mm512_fmadd_ps(_mm512_permutex2var_ps(one, index, other), load(x), sum);
        codes = _mm512_srli_epi32::<4>(codes);
    }
    sum
}

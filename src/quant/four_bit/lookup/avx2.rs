//! Values of a table, byte by byte: a shuffle of bytes looks up 32 codes in one of the four.

use crate::quant::four_bit::codes::{FourBit, PART, Rounding};
use crate::quant::vector::Vector;
use crate::vectors::prefetch_after;
use std::arch::x86_64::*;

/// Rows whose lanes are added up at once.
const ROWS: usize = 4;

/// A table of 16 values.
type Table = [__m256; 2];

/// Byte b of each of 16 values, twice. (No function of the library's calls a closure here or below: it would not be compiled
/// for these instructions.)
type Planes = [__m256i; 4];

#[inline]
#[target_feature(enable = "avx2")]
fn planes([low, high]: Table) -> Planes {
    // In each lane of four values: their first bytes, their second ones, and so on.
    let bytes = _mm256_broadcastsi128_si256(_mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0));
    let low = _mm256_shuffle_epi8(_mm256_castps_si256(low), bytes);
    let high = _mm256_shuffle_epi8(_mm256_castps_si256(high), bytes);
    // Of the values 0 to 3 and 8 to 11, and of the others; then of all, two planes in each, and each plane in both lanes.
    let (even, odd) = (_mm256_permute2x128_si256::<0x20>(low, high), _mm256_permute2x128_si256::<0x31>(low, high));
    let (first, second) = (_mm256_unpacklo_epi32(even, odd), _mm256_unpackhi_epi32(even, odd));
    let (first, second) =
        (_mm256_permute4x64_epi64::<0b11_01_10_00>(first), _mm256_permute4x64_epi64::<0b11_01_10_00>(second));
    [
        _mm256_permute2x128_si256::<0x00>(first, first),
        _mm256_permute2x128_si256::<0x11>(first, first),
        _mm256_permute2x128_si256::<0x00>(second, second),
        _mm256_permute2x128_si256::<0x11>(second, second),
    ]
}

/// The table of a scale, as [`FourBit::table_of`] has it.
#[inline]
#[target_feature(enable = "avx2")]
fn table_of(rounding: Rounding, base: Table, scale: f32) -> Table {
    let wide = _mm256_set1_ps(scale);
    let mut table = [_mm256_mul_ps(base[0], wide), _mm256_mul_ps(base[1], wide)];
    for half in &mut table {
        *half = match rounding {
            Rounding::F32 => *half,
            Rounding::Bf16 => {
                // To nearest, ties to even: half of the last place that stays is added, and its last bit.
                let bits = _mm256_castps_si256(*half);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
                _mm256_castsi256_ps(_mm256_and_si256(rounded, _mm256_set1_epi32(!0xffff)))
            }
            // The instructions for it are no part of AVX2.
            Rounding::F16 => {
                let mut values = [0f32; 8];
                // SAFETY: 8 values.
                unsafe { _mm256_storeu_ps(values.as_mut_ptr(), *half) };
                for value in &mut values {
                    *value = rounding.apply(*value);
                }
                load(&values)
            }
        };
    }
    table
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

/// The table of `matrix`, without a scale.
#[inline]
#[target_feature(enable = "avx2")]
fn base(matrix: &FourBit) -> Table {
    let halves = matrix.table().as_chunks::<8>().0;
    [load(&halves[0]), load(&halves[1])]
}

/// As [`FourBit::dots`], for rows and blocks of whole parts.
#[target_feature(enable = "avx2,fma")]
pub fn dots(matrix: &FourBit, start: usize, columns: usize, x: &Vector, out: &mut [f32]) {
    let (x, per_row) = (x.paired().as_chunks::<PART>().0, columns / PART);
    let (scales, base) = (matrix.scales_of_parts(start / PART, out.len() * per_row), base(matrix));
    let unscaled = planes(base);
    for (n, out) in out.chunks_mut(ROWS).enumerate() {
        let mut sums = [_mm256_setzero_ps(); ROWS];
        for (r, sum) in sums.iter_mut().take(out.len()).enumerate() {
            let row = n * ROWS + r;
            let codes = matrix.packed[(start + row * columns) / 2..][..columns / 2].as_chunks::<{ PART / 2 }>().0;
            for ((codes, scale), x) in codes.iter().zip(&scales[row * per_row..]).zip(x) {
                prefetch_after(codes);
                *sum = match matrix.rounding() {
                    Rounding::F32 => _mm256_fmadd_ps(_mm256_set1_ps(*scale), part(codes, x, &unscaled), *sum),
                    rounding => _mm256_add_ps(part(codes, x, &planes(table_of(rounding, base, *scale))), *sum),
                };
            }
        }
        out.copy_from_slice(&totals(sums)[..out.len()]);
    }
}

/// The sums of the lanes of each.
#[inline]
#[target_feature(enable = "avx2")]
fn totals([a, b, c, d]: [__m256; ROWS]) -> [f32; ROWS] {
    let all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    let sums = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps::<1>(all));
    let mut out = [0f32; ROWS];
    // SAFETY: 4 values.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), sums) };
    out
}

/// As [`FourBit::widen`], for whole parts.
#[target_feature(enable = "avx2,fma")]
pub fn widen(matrix: &FourBit, start: usize, out: &mut [f32]) {
    let (out, first, base) = (out.as_chunks_mut::<PART>().0, start / PART, base(matrix));
    let scales = matrix.scales_of_parts(first, out.len());
    let codes = matrix.packed[first * PART / 2..].as_chunks::<{ PART / 2 }>().0;
    let unscaled = planes(base);
    for ((out, scale), codes) in out.iter_mut().zip(&scales).zip(codes) {
        let (planes, scale) = match matrix.rounding() {
            Rounding::F32 => (unscaled, *scale),
            rounding => (planes(table_of(rounding, base, *scale)), 1.0),
        };
        let ([even, odd], scale) = (both(&planes, codes), _mm256_set1_ps(scale));
        let (first, second) = out.split_at_mut(PART / 2);
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
    }
}

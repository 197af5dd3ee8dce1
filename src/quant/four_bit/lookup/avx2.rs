//! Values of a table, byte by byte: a shuffle of bytes looks up 32 codes in one of the four.

use crate::quant::four_bit::codes::{FourBit, PART, Rounding};
use crate::quant::vector::Vector;
use std::arch::x86_64::*;

/// Parts whose scales are read at once.
const BATCH: usize = 64;

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

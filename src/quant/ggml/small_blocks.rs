//! Blocks of 32 values. Of those with 4 or 5 bits, byte j holds the low bits of values j and j + 16.

use super::factor::half_at;

/// d, 16 bytes: d · (q − 8).
#[inline(always)]
pub fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let (low, high) = out.split_at_mut(16);
    for ((low, high), q) in low.iter_mut().zip(high).zip(&block[2..]) {
        *low = d * (f32::from(q & 15) - 8.0);
        *high = d * (f32::from(q >> 4) - 8.0);
    }
}

/// d, m, 16 bytes: d · q + m.
#[inline(always)]
pub fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let (low, high) = out.split_at_mut(16);
    for ((low, high), q) in low.iter_mut().zip(high).zip(&block[4..]) {
        *low = d * f32::from(q & 15) + m;
        *high = d * f32::from(q >> 4) + m;
    }
}

/// d, the fifth bits of all values, 16 bytes: d · (q − 16).
#[inline(always)]
pub fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    five_bits(&block[6..], fifth, out, |q| d * (q - 16.0));
}

/// d, m, the fifth bits of all values, 16 bytes: d · q + m.
#[inline(always)]
pub fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let fifth = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    five_bits(&block[8..], fifth, out, |q| d * q + m);
}

/// `value` of each q of 5 bits, as a float.
#[inline(always)]
fn five_bits(quants: &[u8], fifth: u32, out: &mut [f32; 32], value: impl Fn(f32) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for (j, ((low, high), &q)) in (0u32..).zip(low.iter_mut().zip(high).zip(quants)) {
        let q = u32::from(q);
        *low = value(((q & 15) | ((fifth >> j) & 1) << 4) as f32);
        *high = value(((q >> 4) | ((fifth >> (j + 16)) & 1) << 4) as f32);
    }
}

/// d, 32 signed bytes: q · d.
#[inline(always)]
pub fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (out, &q) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(q.cast_signed()) * d;
    }
}

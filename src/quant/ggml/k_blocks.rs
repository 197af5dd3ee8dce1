//! Blocks of 256 values, in groups that have their own small scales.

use super::parts::{Parts, bits, half_at, joined, shifted, two_bits};

/// 16 scales and minima of 4 bits, 64 bytes, d, dmin: (d·s) · q − (dmin·m), 16 values for each scale. Byte j of 32
/// holds values j, j + 32, j + 64 and j + 96, of 2 bits.
#[inline(always)]
pub fn q2(block: &[u8; 84]) -> Parts<16, 16> {
    let mut parts = Parts::ZERO;
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for (byte, (scale, min)) in block.iter().zip(parts.scales.iter_mut().zip(&mut parts.minima)) {
        (*scale, *min) = (d * f32::from(byte & 15), dmin * f32::from(byte >> 4));
    }
    for (half, bytes) in block[16..80].as_chunks::<32>().0.iter().enumerate() {
        parts.put(128 * half, two_bits(bytes), 0);
    }
    parts
}

/// The third bits of all values, 64 bytes, 16 scales of 6 bits, d: (d · (s − 32)) · (q − 4), 16 values for each scale. Bytes are
/// as in [`q2`]; bit i of the first 32 belongs to the i-th 32 values.
#[inline(always)]
pub fn q3(block: &[u8; 110]) -> Parts<16, 16> {
    let mut parts = Parts::ZERO;
    let d = half_at(block, 108);
    for g in 0..16 {
        let low = block[96 + g % 8] >> (4 * (g / 8)) & 15;
        let high = block[104 + g % 4] >> (2 * (g / 4)) & 3;
        parts.scales[g] = d * (f32::from(low | high << 4) - 32.0);
    }
    let [third, low @ ..] = block.as_chunks::<32>().0 else { return parts };
    for (half, bytes) in low.iter().enumerate() {
        let third = shifted(third, 4 * half as u32);
        let [a, b, c, d] = two_bits(bytes);
        let (e, f, g, h) = (bits::<0, 1>(&third), bits::<1, 1>(&third), bits::<2, 1>(&third), bits::<3, 1>(&third));
        let codes = [joined::<2>(a, e), joined::<2>(b, f), joined::<2>(c, g), joined::<2>(d, h)];
        parts.put(128 * half, codes, 4);
    }
    parts
}

/// d, dmin, 8 scales and minima of 6 bits, 128 bytes: (d·s) · q − (dmin·m), 32 values for each scale. Byte j of 32 holds values
/// j and j + 32.
#[inline(always)]
pub fn q4(block: &[u8; 144]) -> Parts<32, 8> {
    let mut parts = with_factors(block);
    for (pair, bytes) in block[16..].as_chunks::<32>().0.iter().enumerate() {
        parts.put(64 * pair, [bits::<0, 15>(bytes), bits::<4, 15>(bytes)], 0);
    }
    parts
}

/// As [`q4`], with the fifth bits of all values before the 128 bytes: bit i of 32 bytes belongs to the i-th 32 values.
#[inline(always)]
pub fn q5(block: &[u8; 176]) -> Parts<32, 8> {
    let mut parts = with_factors(block);
    let [fifth, low @ ..] = block[16..].as_chunks::<32>().0 else { return parts };
    for (pair, bytes) in low.iter().enumerate() {
        let fifth = shifted(fifth, 2 * pair as u32);
        let (low, high) = (bits::<0, 15>(bytes), bits::<4, 15>(bytes));
        let codes = [joined::<4>(low, bits::<0, 1>(&fifth)), joined::<4>(high, bits::<1, 1>(&fifth))];
        parts.put(64 * pair, codes, 0);
    }
    parts
}

/// d, dmin, and 8 scales and minima of 6 bits, four at once: of 12 bytes, the first four hold the scales and the next four the
/// minima of groups 0 to 3 in their low six bits; the last four hold the low four bits of those of groups 4 to 7, whose upper two
/// stand at the top of the first eight.
#[inline(always)]
fn with_factors<const BYTES: usize>(block: &[u8; BYTES]) -> Parts<32, 8> {
    const SIX: u32 = 0x3f3f_3f3f;
    const FOUR: u32 = 0x0f0f_0f0f;
    const UPPER: u32 = 0x3030_3030;
    let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let (scales, minima, rest) = (word(4), word(8), word(12));
    let eight = |low: u32, high: u32| (u64::from(low) | u64::from(high) << 32).to_le_bytes();
    let scales = eight(scales & SIX, rest & FOUR | scales >> 2 & UPPER);
    let minima = eight(minima & SIX, rest >> 4 & FOUR | minima >> 2 & UPPER);
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let mut parts = Parts::ZERO;
    for g in 0..8 {
        parts.scales[g] = d * f32::from(scales[g]);
        parts.minima[g] = dmin * f32::from(minima[g]);
    }
    parts
}

/// The low four bits of all values, their upper two, 16 scales of 8 bits, d: (d·s) · (q − 32), 16 values for each scale. For each
/// half of the block, byte j of 64 holds the low bits of values j and j + 64, and byte j of 32 the upper ones of j, j + 32, j + 64
/// and j + 96.
#[inline(always)]
pub fn q6(block: &[u8; 210]) -> Parts<16, 16> {
    let mut parts = Parts::ZERO;
    let d = half_at(block, 208);
    for (scale, byte) in parts.scales.iter_mut().zip(&block[192..208]) {
        *scale = d * f32::from(byte.cast_signed());
    }
    let low = block[..128].as_chunks::<64>().0.iter().map(|low| low.as_chunks::<32>().0);
    for (half, (low, high)) in low.zip(block[128..192].as_chunks::<32>().0).enumerate() {
        let [one, other] = low else { return parts };
        let low = [bits::<0, 15>(one), bits::<0, 15>(other), bits::<4, 15>(one), bits::<4, 15>(other)];
        let ([a, b, c, d], [e, f, g, h]) = (low, two_bits(high));
        let codes = [joined::<4>(a, e), joined::<4>(b, f), joined::<4>(c, g), joined::<4>(d, h)];
        parts.put(128 * half, codes, 32);
    }
    parts
}

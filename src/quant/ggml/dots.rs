//! Dot products with rows of blocks as they are: nothing is widened to memory, and what all values of a group share is
//! applied to their sum.
//!
//! A value is s·q, or s·q − m, with s and m of its group, so that Σ value·x = s Σ q·x − m Σ x. Equal to the product with the
//! widened values up to the rounding of sums.

use super::GgmlType;
use super::factor::finite_half_at;
use super::k_blocks::q3_scale;
use crate::quant::vector::Vector;
use crate::vectors::vectorised;

/// Sums that are added up side by side.
const LANES: usize = 8;

/// A block taken apart: codes in the order of values, and for each group of them what they share.
struct Parts<const LEN: usize, const GROUPS: usize> {
    codes: [i8; LEN],
    scales: [f32; GROUPS],
    /// 0 for types that have none.
    minima: [f32; GROUPS],
}

impl GgmlType {
    /// `out[i]` = row i · x for rows of whole blocks of a quantised type, whose factors are finite.
    pub fn dots(self, rows: &[u8], x: &Vector, out: &mut [f32]) {
        match self {
            Self::Q4_0 => each::<18, 32, 32, 1>(rows, x, out, None, q4_0),
            Self::Q4_1 => each::<20, 32, 32, 1>(rows, x, out, Some(x.sums_of_32()), q4_1),
            Self::Q5_0 => each::<22, 32, 32, 1>(rows, x, out, None, q5_0),
            Self::Q5_1 => each::<24, 32, 32, 1>(rows, x, out, Some(x.sums_of_32()), q5_1),
            Self::Q8_0 => each::<34, 32, 32, 1>(rows, x, out, None, q8_0),
            Self::Q2K => each::<84, 256, 16, 16>(rows, x, out, Some(x.sums_of_16()), q2_k),
            Self::Q3K => each::<110, 256, 16, 16>(rows, x, out, None, q3_k),
            Self::Q4K => each::<144, 256, 32, 8>(rows, x, out, Some(x.sums_of_32()), q4_k),
            Self::Q5K => each::<176, 256, 32, 8>(rows, x, out, Some(x.sums_of_32()), q5_k),
            Self::Q6K => each::<210, 256, 16, 16>(rows, x, out, None, q6_k),
            Self::F32 | Self::F16 | Self::Bf16 => unreachable!("values that are not in blocks"),
        }
    }
}

/// For blocks of `LEN` values in `BYTES` bytes, in `GROUPS` groups of `WIDTH`. `sums`: of x over groups, for types with minima.
#[inline(always)]
fn each<const BYTES: usize, const LEN: usize, const WIDTH: usize, const GROUPS: usize>(
    rows: &[u8],
    x: &Vector,
    out: &mut [f32],
    sums: Option<&[f32]>,
    take_apart: impl Fn(&[u8; BYTES], &mut Parts<LEN, GROUPS>),
) {
    let (values, blocks) = (x.values().as_chunks::<LEN>().0, rows.as_chunks::<BYTES>().0);
    let sums = sums.map(|sums| sums.as_chunks::<GROUPS>().0);
    vectorised!({
        for (blocks, out) in blocks.chunks(values.len().max(1)).zip(out) {
            let (mut lanes, mut minima) = ([0f32; LANES], [0f32; GROUPS]);
            for (i, (block, x)) in blocks.iter().zip(values).enumerate() {
                let mut parts = Parts { codes: [0; LEN], scales: [0.0; GROUPS], minima: [0.0; GROUPS] };
                take_apart(block, &mut parts);
                if let Some(sums) = sums {
                    for g in 0..GROUPS {
                        minima[g] += parts.minima[g] * sums[i][g];
                    }
                }
                let (codes, x) = (parts.codes.as_chunks::<WIDTH>().0, x.as_chunks::<WIDTH>().0);
                for g in 0..GROUPS {
                    let group = products(&codes[g], &x[g]);
                    for j in 0..LANES {
                        lanes[j] += parts.scales[g] * group[j];
                    }
                }
            }
            *out = lanes.iter().sum::<f32>() - minima.iter().sum::<f32>();
        }
    });
}

/// Σ q·x in lanes.
#[inline(always)]
fn products<const WIDTH: usize>(codes: &[i8; WIDTH], x: &[f32; WIDTH]) -> [f32; LANES] {
    let mut products = [0f32; WIDTH];
    for j in 0..WIDTH {
        products[j] = f32::from(codes[j]) * x[j];
    }
    let mut width = WIDTH / 2;
    while width >= LANES {
        for j in 0..width {
            products[j] += products[j + width];
        }
        width /= 2;
    }
    let mut lanes = [0f32; LANES];
    lanes.copy_from_slice(&products[..LANES]);
    lanes
}

#[inline(always)]
fn q4_0(block: &[u8; 18], parts: &mut Parts<32, 1>) {
    parts.scales = [finite_half_at(block, 0)];
    parts.codes = less(nibbles(&block[2..]), 8);
}

#[inline(always)]
fn q4_1(block: &[u8; 20], parts: &mut Parts<32, 1>) {
    (parts.scales, parts.minima) = ([finite_half_at(block, 0)], [-finite_half_at(block, 2)]);
    parts.codes = less(nibbles(&block[4..]), 0);
}

#[inline(always)]
fn q5_0(block: &[u8; 22], parts: &mut Parts<32, 1>) {
    parts.scales = [finite_half_at(block, 0)];
    parts.codes = less(with_fifths(nibbles(&block[6..]), [block[2], block[3], block[4], block[5]]), 16);
}

#[inline(always)]
fn q5_1(block: &[u8; 24], parts: &mut Parts<32, 1>) {
    (parts.scales, parts.minima) = ([finite_half_at(block, 0)], [-finite_half_at(block, 2)]);
    parts.codes = less(with_fifths(nibbles(&block[8..]), [block[4], block[5], block[6], block[7]]), 0);
}

#[inline(always)]
fn q8_0(block: &[u8; 34], parts: &mut Parts<32, 1>) {
    parts.scales = [finite_half_at(block, 0)];
    for (out, q) in parts.codes.iter_mut().zip(&block[2..]) {
        *out = q.cast_signed();
    }
}

#[inline(always)]
fn q2_k(block: &[u8; 84], parts: &mut Parts<256, 16>) {
    let (d, dmin) = (finite_half_at(block, 80), finite_half_at(block, 82));
    for (byte, (scale, min)) in block.iter().zip(parts.scales.iter_mut().zip(&mut parts.minima)) {
        (*scale, *min) = (d * f32::from(byte & 15), dmin * f32::from(byte >> 4));
    }
    for (codes, bytes) in parts.codes.as_chunks_mut::<128>().0.iter_mut().zip(block[16..80].as_chunks::<32>().0) {
        put(codes, two_bits(bytes), 0);
    }
}

#[inline(always)]
fn q3_k(block: &[u8; 110], parts: &mut Parts<256, 16>) {
    let d = finite_half_at(block, 108);
    for g in 0..16 {
        parts.scales[g] = d * q3_scale(&block[96..108], g);
    }
    let Some(third) = block.first_chunk::<32>() else { return };
    let halves = parts.codes.as_chunks_mut::<128>().0.iter_mut().zip(block[32..96].as_chunks::<32>().0);
    for ((codes, bytes), shift) in halves.zip([0, 4]) {
        let third = shifted(third, shift);
        let [a, b, c, d] = two_bits(bytes);
        let (e, f, g, h) = (bits::<0, 1>(&third), bits::<1, 1>(&third), bits::<2, 1>(&third), bits::<3, 1>(&third));
        put(codes, [joined::<2>(a, e), joined::<2>(b, f), joined::<2>(c, g), joined::<2>(d, h)], 4);
    }
}

#[inline(always)]
fn q4_k(block: &[u8; 144], parts: &mut Parts<256, 8>) {
    factors(block, parts);
    for (codes, bytes) in parts.codes.as_chunks_mut::<64>().0.iter_mut().zip(block[16..].as_chunks::<32>().0) {
        put(codes, [bits::<0, 15>(bytes), bits::<4, 15>(bytes)], 0);
    }
}

#[inline(always)]
fn q5_k(block: &[u8; 176], parts: &mut Parts<256, 8>) {
    factors(block, parts);
    let Some(fifth) = block[16..].first_chunk::<32>() else { return };
    let pairs = parts.codes.as_chunks_mut::<64>().0.iter_mut().zip(block[48..].as_chunks::<32>().0);
    for ((codes, bytes), shift) in pairs.zip([0, 2, 4, 6]) {
        let fifth = shifted(fifth, shift);
        let (low, high) = (bits::<0, 15>(bytes), bits::<4, 15>(bytes));
        let (low, high) = (joined::<4>(low, bits::<0, 1>(&fifth)), joined::<4>(high, bits::<1, 1>(&fifth)));
        put(codes, [low, high], 0);
    }
}

#[inline(always)]
fn q6_k(block: &[u8; 210], parts: &mut Parts<256, 16>) {
    let d = finite_half_at(block, 208);
    for (scale, byte) in parts.scales.iter_mut().zip(&block[192..208]) {
        *scale = d * f32::from(byte.cast_signed());
    }
    let bytes = block[..128].as_chunks::<64>().0.iter().zip(block[128..192].as_chunks::<32>().0);
    for (codes, (low, high)) in parts.codes.as_chunks_mut::<128>().0.iter_mut().zip(bytes) {
        let [one, other] = low.as_chunks::<32>().0 else { return };
        let low = [bits::<0, 15>(one), bits::<0, 15>(other), bits::<4, 15>(one), bits::<4, 15>(other)];
        let ([a, b, c, d], [e, f, g, h]) = (low, two_bits(high));
        put(codes, [joined::<4>(a, e), joined::<4>(b, f), joined::<4>(c, g), joined::<4>(d, h)], 32);
    }
}

/// Some bits of each byte.
#[inline(always)]
fn bits<const SHIFT: u32, const MASK: u8>(bytes: &[u8; 32]) -> [u8; 32] {
    let mut out = [0; 32];
    for i in 0..32 {
        out[i] = bytes[i] >> SHIFT & MASK;
    }
    out
}

/// All bytes shifted down.
#[inline(always)]
fn shifted(bytes: &[u8; 32], shift: u32) -> [u8; 32] {
    let mut out = [0; 32];
    for i in 0..32 {
        out[i] = bytes[i] >> shift;
    }
    out
}

/// The four codes of 2 bits in each byte, the lowest first.
#[inline(always)]
fn two_bits(bytes: &[u8; 32]) -> [[u8; 32]; 4] {
    [bits::<0, 3>(bytes), bits::<2, 3>(bytes), bits::<4, 3>(bytes), bits::<6, 3>(bytes)]
}

/// Codes with more bits above their first `SHIFT`.
#[inline(always)]
fn joined<const SHIFT: u32>(low: [u8; 32], high: [u8; 32]) -> [u8; 32] {
    let mut out = [0; 32];
    for i in 0..32 {
        out[i] = low[i] | high[i] << SHIFT;
    }
    out
}

/// Codes below 128 as numbers, less what they are stored with.
#[inline(always)]
fn less(codes: [u8; 32], offset: i8) -> [i8; 32] {
    let mut out = [0; 32];
    for i in 0..32 {
        out[i] = codes[i].cast_signed() - offset;
    }
    out
}

/// Puts codes less `offset` one after the other.
#[inline(always)]
fn put<const LEN: usize, const COUNT: usize>(out: &mut [i8; LEN], codes: [[u8; 32]; COUNT], offset: i8) {
    for i in 0..COUNT {
        for j in 0..32 {
            out[32 * i + j] = codes[i][j].cast_signed() - offset;
        }
    }
}

/// Codes of 4 bits: the low halves of 16 bytes, then the high ones.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> [u8; 32] {
    let mut codes = [0; 32];
    let Some(bytes) = bytes.first_chunk::<16>() else { return codes };
    for i in 0..16 {
        codes[i] = bytes[i] & 15;
        codes[16 + i] = bytes[i] >> 4;
    }
    codes
}

/// With fifth bits, of which each byte has those of 8 codes.
#[inline(always)]
fn with_fifths(low: [u8; 32], fifths: [u8; 4]) -> [u8; 32] {
    let mut out = [0; 32];
    for i in 0..32 {
        let is_set = fifths[i / 8] & PLACES[i] != 0;
        out[i] = low[i] | if is_set { 16 } else { 0 };
    }
    out
}

/// Bit i of a byte for the i-th of each 8 codes.
const PLACES: [u8; 32] = {
    let mut places = [0; 32];
    let mut i = 0;
    while i < 32 {
        places[i] = 1 << (i % 8);
        i += 1;
    }
    places
};

/// d, dmin, and 8 scales and minima of 6 bits, as [`super::k_blocks`] has them, four at once.
#[inline(always)]
fn factors<const BYTES: usize>(block: &[u8; BYTES], parts: &mut Parts<256, 8>) {
    const SIX: u32 = 0x3f3f_3f3f;
    const FOUR: u32 = 0x0f0f_0f0f;
    const UPPER: u32 = 0x3030_3030;
    let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let (scales, minima, rest) = (word(4), word(8), word(12));
    let eight = |low: u32, high: u32| (u64::from(low) | u64::from(high) << 32).to_le_bytes();
    let scales = eight(scales & SIX, rest & FOUR | scales >> 2 & UPPER);
    let minima = eight(minima & SIX, rest >> 4 & FOUR | minima >> 2 & UPPER);
    let (d, dmin) = (finite_half_at(block, 0), finite_half_at(block, 2));
    for g in 0..8 {
        parts.scales[g] = d * f32::from(scales[g]);
        parts.minima[g] = dmin * f32::from(minima[g]);
    }
}

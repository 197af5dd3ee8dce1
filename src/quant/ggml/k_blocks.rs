//! Blocks of 256 values, in groups that have their own small scales.

use super::factor::half_at;

/// 16 scales and minima of 4 bits, 64 bytes, d, dmin: (d·s) · q − (dmin·m), 16 values for each scale. Byte j of 32
/// holds values j, j + 32, j + 64 and j + 96, of 2 bits.
#[inline(always)]
pub fn q2(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    let (scales, quants) = (&block[..16], &block[16..80]);
    for (group, (out, scale)) in out.as_chunks_mut::<16>().0.iter_mut().zip(scales).enumerate() {
        let (scale, min) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
        let (start, shift) = two_bits(group);
        for (out, q) in out.iter_mut().zip(&quants[start..start + 16]) {
            *out = scale * f32::from((q >> shift) & 3) - min;
        }
    }
}

/// Where the 2-bit values of a group of 16 are: the first of their bytes, and by how much to shift them.
#[inline(always)]
fn two_bits(group: usize) -> (usize, usize) {
    (32 * (group / 8) + 16 * (group % 2), 2 * (group % 8 / 2))
}

/// The third bits of all values, 64 bytes, 16 scales of 6 bits, d: (d · (s − 32)) · (q − 4), 16 values for each scale.
#[inline(always)]
pub fn q3(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = half_at(block, 108);
    let (third, quants, scales) = (&block[..32], &block[32..96], &block[96..108]);
    for (group, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * q3_scale(scales, group);
        let (start, shift) = two_bits(group);
        let (quants, third) = (&quants[start..start + 16], &third[16 * (group % 2)..][..16]);
        for (out, (q, third)) in out.iter_mut().zip(quants.iter().zip(third)) {
            *out = scale * (f32::from((q >> shift & 3) | (third >> (group / 2) & 1) << 2) - 4.0);
        }
    }
}

/// The scale of one of 16 groups, of 6 bits less 32.
#[inline(always)]
pub fn q3_scale(packed: &[u8], group: usize) -> f32 {
    let low = packed[group % 8] >> (4 * (group / 8)) & 15;
    let high = packed[8 + group % 4] >> (2 * (group / 4)) & 3;
    f32::from(low | high << 4) - 32.0
}

/// d, dmin, 8 scales and minima of 6 bits, 128 bytes: (d·s) · q − (dmin·m), 32 values for each scale.
#[inline(always)]
pub fn q4(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = six_bits(&block[4..16], group);
        let (scale, min) = (d * scale, dmin * min);
        let (quants, shift) = (&block[16 + 32 * (group / 2)..][..32], 4 * (group % 2));
        for (out, q) in out.iter_mut().zip(quants) {
            *out = scale * f32::from(q >> shift & 15) - min;
        }
    }
}

/// As [`q4`], with the fifth bits of all values before the 128 bytes.
#[inline(always)]
pub fn q5(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let fifth = &block[16..48];
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = six_bits(&block[4..16], group);
        let (scale, min) = (d * scale, dmin * min);
        let (quants, shift) = (&block[48 + 32 * (group / 2)..][..32], 4 * (group % 2));
        for (out, (q, fifth)) in out.iter_mut().zip(quants.iter().zip(fifth)) {
            *out = scale * f32::from((q >> shift & 15) | (fifth >> group & 1) << 4) - min;
        }
    }
}

/// Scale and minimum of one of 8 groups. Of the 12 bytes, the first four hold the scales and the next four the minima
/// of groups 0 to 3 in their low six bits; the last four hold the low four bits of those of groups 4 to 7, whose upper
/// two stand at the top of the first eight.
#[inline(always)]
fn six_bits(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, min) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let low = packed[group + 4];
        ((low & 15) | (packed[group - 4] >> 2 & 48), (low >> 4) | (packed[group] >> 2 & 48))
    };
    (f32::from(scale), f32::from(min))
}

/// The low four bits of all values, their upper two, 16 scales of 8 bits, d: (d·s) · (q − 32), 16 values for each scale.
#[inline(always)]
pub fn q6(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    for (group, (out, scale)) in out.as_chunks_mut::<16>().0.iter_mut().zip(scales).enumerate() {
        let scale = d * f32::from(scale.cast_signed());
        // Each half of the block: its 64 bytes hold values j and j + 64.
        let (half, part, odd) = (group / 8, group % 8 / 2, 16 * (group % 2));
        let (start, shift) = (64 * half + 32 * (part % 2) + odd, 4 * (part / 2));
        let (low, high) = (&low[start..start + 16], &high[32 * half + odd..][..16]);
        for (out, (low, high)) in out.iter_mut().zip(low.iter().zip(high)) {
            *out = scale * (f32::from((low >> shift & 15) | (high >> (2 * part) & 3) << 4) - 32.0);
        }
    }
}

//! What the values of a block are multiples of.

use half::f16;

/// The f16 at byte `at` of a block, as f32.
#[inline(always)]
pub fn half_at<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// As [`half_at`], for halves that are finite: nothing is asked of the CPU for each of them.
#[inline(always)]
pub fn finite_half_at<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> f32 {
    let bits = u32::from(u16::from_le_bytes([block[at], block[at + 1]]));
    // Exponents of halves begin at -14, those of f32 at -126.
    let scale = f32::from_bits((127 + 112) << 23);
    f32::from_bits((bits & 0x7fff) << 13) * scale * if bits & 0x8000 == 0 { 1.0 } else { -1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_are_the_same_for_all_finite_halves() {
        for bits in 0..=u16::MAX {
            let expected = half_at(&bits.to_le_bytes(), 0);
            if expected.is_finite() {
                assert_eq!(finite_half_at(&bits.to_le_bytes(), 0).to_bits(), expected.to_bits(), "{bits:x}");
            }
        }
    }
}

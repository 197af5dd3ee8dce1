//! What the values of a block are multiples of.

use half::f16;

/// The f16 at byte `at` of a block, as f32.
#[inline(always)]
pub fn half_at<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

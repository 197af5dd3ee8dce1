//! A block taken apart, which is all that is known of a format: [`super::small_blocks`] and [`super::k_blocks`] do it, values
//! and products follow.

/// Value j of group g is `scales[g]` · `codes[g][j]` − `minima[g]`.
pub struct Parts<const WIDTH: usize, const GROUPS: usize> {
    /// Groups in the order of values.
    pub codes: [[i8; WIDTH]; GROUPS],
    pub scales: [f32; GROUPS],
    /// Zeros for types that have none: to subtract them changes no bit.
    pub minima: [f32; GROUPS],
}

impl<const WIDTH: usize, const GROUPS: usize> Parts<WIDTH, GROUPS> {
    /// Zeros, to be filled in.
    pub const ZERO: Self = Self { codes: [[0; WIDTH]; GROUPS], scales: [0.0; GROUPS], minima: [0.0; GROUPS] };

    /// The codes of group g as floats.
    #[inline(always)]
    pub fn wide(&self, g: usize) -> [f32; WIDTH] {
        let mut wide = [0f32; WIDTH];
        for (wide, code) in wide.iter_mut().zip(&self.codes[g]) {
            *wide = f32::from(*code);
        }
        wide
    }

    /// Puts runs of 32 codes, less `offset`, from value `first` on, one after the other.
    #[inline(always)]
    pub fn put<const COUNT: usize>(&mut self, first: usize, codes: [[u8; 32]; COUNT], offset: i8) {
        let all = &mut self.codes.as_flattened_mut()[first..][..32 * COUNT];
        for i in 0..COUNT {
            for j in 0..32 {
                all[32 * i + j] = codes[i][j].cast_signed() - offset;
            }
        }
    }
}

/// The f16 at byte `at` of a block as f32: exact, also of subnormal, infinite and undefined ones. Made of integers and an
/// operation on ordinary numbers, so that it does not matter whether the CPU takes subnormal ones for zeros.
#[inline(always)]
pub fn half_at<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> f32 {
    let half = i16::from_le_bytes([block[at], block[at + 1]]);
    // The sign stays on top, the rest is where an f32 has it. Exponents of halves count from -15, those of f32 from -127.
    let placed = (i32::from(half) << 13).cast_unsigned() & 0x8fff_e000;
    match half >> 10 & 31 {
        1..31 => f32::from_bits(placed + ((127 - 15) << 23)),
        0 => f32::from(half & 0x3ff).copysign(f32::from(half)) * f32::from_bits((127 - 24) << 23),
        _ => f32::from_bits(placed | 0x7f80_0000),
    }
}

/// Some bits of each byte.
#[inline(always)]
pub fn bits<const SHIFT: u32, const MASK: u8>(bytes: &[u8; 32]) -> [u8; 32] {
    let mut out = [0; 32];
    for i in 0..32 {
        out[i] = bytes[i] >> SHIFT & MASK;
    }
    out
}

/// All bytes shifted down.
#[inline(always)]
pub fn shifted(bytes: &[u8; 32], shift: u32) -> [u8; 32] {
    let mut out = [0; 32];
    for i in 0..32 {
        out[i] = bytes[i] >> shift;
    }
    out
}

/// The four codes of 2 bits in each byte, the lowest first.
#[inline(always)]
pub fn two_bits(bytes: &[u8; 32]) -> [[u8; 32]; 4] {
    [bits::<0, 3>(bytes), bits::<2, 3>(bytes), bits::<4, 3>(bytes), bits::<6, 3>(bytes)]
}

/// Codes of 4 bits: the low halves of 16 bytes, then the high ones.
#[inline(always)]
pub fn nibbles(bytes: &[u8; 16]) -> [u8; 32] {
    let mut codes = [0; 32];
    for i in 0..16 {
        codes[i] = bytes[i] & 15;
        codes[16 + i] = bytes[i] >> 4;
    }
    codes
}

/// Codes with more bits above their first `SHIFT`.
#[inline(always)]
pub fn joined<const SHIFT: u32>(low: [u8; 32], high: [u8; 32]) -> [u8; 32] {
    let mut out = [0; 32];
    for i in 0..32 {
        out[i] = low[i] | high[i] << SHIFT;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn every_half_is_what_it_stands_for() {
        for bits in 0..=u16::MAX {
            let (got, expected) = (half_at(&bits.to_le_bytes(), 0), f16::from_bits(bits).to_f32());
            assert!(got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(), "{bits:x}: {got}");
        }
    }
}

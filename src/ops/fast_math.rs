//! Exponentials that the compiler can vectorise.
//!
//! Scalar `f32::exp` is a library call per element; the polynomial below is branch-free, so a loop over it becomes
//! SIMD code.

pub(super) use crate::vectors::vectorised;

/// e^x to about one unit in the last place for x in [-87, 88]; clamped outside, so never infinite or denormal.
///
/// x = n ln 2 + r with |r| ≤ ln 2 / 2 (ln 2 in two parts, after Cody and Waite); e^r by its Taylor polynomial.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Adding and subtracting 1.5 · 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + coefficient;
    }
    // 2^n by its exponent bits: n + ROUND holds the integer n in its low mantissa bits.
    let bits = (n + ROUND).to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    p * f32::from_bits(bits)
}

/// 1 / (1 + e^-x)
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// tanh x: an odd polynomial near 0, where the other form loses digits, and (1 − e^-2|x|) / (1 + e^-2|x|) elsewhere.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let square = x * x;
    let mut p = 62.0 / 2835.0;
    for coefficient in [-17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0, 1.0] {
        p = p * square + coefficient;
    }
    let e = exp(-2.0 * x.abs());
    let far = ((1.0 - e) / (1.0 + e)).copysign(x);
    if square < 0.0625 { x * p } else { far }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tanh_is_within_a_few_units_in_the_last_place() {
        let worst = (-200_000..200_000)
            .filter(|&i| i != 0)
            .map(|i| i as f32 * 1e-4)
            .map(|x| {
                let truth = f64::from(x).tanh();
                ((f64::from(tanh(x)) - truth) / truth).abs()
            })
            .fold(0.0, f64::max);
        assert!(worst < 5e-7, "worst relative error {worst}");
        assert_eq!((tanh(0.0), tanh(1e9), tanh(-1e9)), (0.0, 1.0, -1.0));
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let worst = (-870_000..880_000)
            .map(|i| i as f32 * 1e-4)
            .map(|x| {
                let truth = f64::from(x).exp();
                (f64::from(exp(x)) - truth).abs() / truth
            })
            .fold(0.0, f64::max);
        assert!(worst < 2.4e-7, "worst relative error {worst}");
    }

    #[test]
    fn ends_are_clamped() {
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
        assert!(exp(1e9).is_finite());
        assert_eq!(exp(0.0), 1.0);
    }
}

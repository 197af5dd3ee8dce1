//! A weight's sketch: 1024 numbers by which a quantised form of it is known, without the weight itself.
//!
//! The weight, flattened, is cut into 1024 runs; number j is Σ ε_i w_i over run j, with pseudo-random signs ε that are the
//! same for every weight. Since the signs are independent, ‖sketch(w) − sketch(w')‖² is ‖w − w'‖² in expectation, with a
//! standard deviation of about √(2/1024) of it (Alon, Matias and Szegedy 1996). The sketch is linear: that of
//! V = W_aligned − W_unaligned is the difference of the two.

/// Numbers in a sketch.
pub const LENGTH: usize = 1024;

/// The sketch of a weight's values.
pub fn sketch(values: &[f32]) -> Vec<f32> {
    let run = values.len().div_ceil(LENGTH).max(1);
    let mut sums = vec![0f32; LENGTH];
    for (j, (sum, values)) in sums.iter_mut().zip(values.chunks(run)).enumerate() {
        *sum = signed_sum(values, j as u64) as f32;
    }
    sums
}

/// Σ ε w, the signs of run `j`: 64 of them from each number of a counting generator.
fn signed_sum(values: &[f32], j: u64) -> f64 {
    let mut total = 0f64;
    for (word, values) in values.chunks(64).enumerate() {
        let signs = mixed((j << 32) | word as u64);
        for (i, value) in values.iter().enumerate() {
            let value = f64::from(*value);
            total += if signs >> i & 1 == 0 { value } else { -value };
        }
    }
    total
}

/// The output function of SplitMix64 (Steele, Lea and Flood 2014).
fn mixed(number: u64) -> u64 {
    let z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The sketches of both sides of a direction.
pub struct Pair {
    pub aligned: Vec<f32>,
    pub unaligned: Vec<f32>,
}

/// How a weight lies to both sides of a direction, by their sketches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Likeness {
    /// ‖W − W_aligned‖²
    pub difference: f64,
    /// ‖W_aligned‖²
    pub size: f64,
    /// ⟨W − W_aligned, V⟩
    along: f64,
    /// ‖V‖²
    direction: f64,
}

impl Likeness {
    pub fn of(weight: &[f32], pair: &Pair) -> Self {
        let mut likeness = Self::default();
        for ((w, a), u) in weight.iter().zip(&pair.aligned).zip(&pair.unaligned) {
            let (w, a, u) = (f64::from(*w), f64::from(*a), f64::from(*u));
            likeness.difference += (w - a).powi(2);
            likeness.size += a * a;
            likeness.along += (w - a) * (a - u);
            likeness.direction += (a - u).powi(2);
        }
        likeness
    }

    /// Of several weights together.
    pub fn with(self, other: Self) -> Self {
        Self {
            difference: self.difference + other.difference,
            size: self.size + other.size,
            along: self.along + other.along,
            direction: self.direction + other.direction,
        }
    }

    /// ‖W − W_aligned‖ / ‖W_aligned‖
    pub fn distance(self) -> f64 {
        if self.difference == 0.0 { 0.0 } else { (self.difference / self.size).sqrt() }
    }

    /// Where the weight is on the way from the aligned (0) to the unaligned (1).
    pub fn towards_unaligned(self) -> f64 {
        if self.direction == 0.0 { 0.0 } else { -self.along / self.direction }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, count: usize, scale: f64) -> Vec<f32> {
        let uniform = |i: usize| mixed(seed << 40 | i as u64) as f64 / u64::MAX as f64 - 0.5;
        (0..count).map(|i| (uniform(i) * scale) as f32).collect()
    }

    fn sum(a: &[f32], b: &[f32]) -> Vec<f32> {
        a.iter().zip(b).map(|(a, b)| a + b).collect()
    }

    #[test]
    fn distances_are_those_of_the_weights() {
        for count in [96 * 64, 300 * 513] {
            let (aligned, v) = (noise(1, count, 1.0), noise(2, count, 0.03));
            let negative: Vec<f32> = v.iter().map(|x| -x).collect();
            let unaligned = sum(&aligned, &negative);
            let pair = Pair { aligned: sketch(&aligned), unaligned: sketch(&unaligned) };
            for scale in [0.0, 0.005, 0.1, 0.5] {
                let error = noise(3, count, scale);
                let of = |weight: &[f32]| Likeness::of(&sketch(&sum(weight, &error)), &pair);
                let (near, other) = (of(&aligned), of(&unaligned));
                assert!((near.distance() - scale).abs() <= 0.1 * scale + 1e-6, "{scale}: {}", near.distance());
                // The error is up to three times V here, up to sixteen where one is not enough to tell.
                if scale <= 0.1 {
                    assert!(near.towards_unaligned() < 0.4, "{scale}: {near:?}");
                    assert!(other.towards_unaligned() > 0.6, "{scale}: {other:?}");
                }
            }
        }
    }

    #[test]
    fn small_weights_have_one_too() {
        let of = |weight: &[f32]| {
            Likeness::of(&sketch(weight), &Pair { aligned: sketch(&[1.0, -2.0]), unaligned: sketch(&[]) })
        };
        assert_eq!(of(&[1.0, -2.0]).distance(), 0.0);
        assert_eq!(of(&[1.5, -2.0]).distance(), 0.5 / 5f64.sqrt());
    }
}

//! How a weight lies to both sides of a direction, told by sketches ([`crate::checkpoint::sketch`]). The sketch is linear: that of
//! V = W_aligned − W_unaligned is the difference of the two.

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
    /// The variance of `along` that the sketches' signs leave.
    variance: f64,
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
        likeness.variance = likeness.difference * likeness.direction / weight.len().max(1) as f64;
        likeness
    }

    /// Of several weights together.
    pub fn with(self, other: Self) -> Self {
        Self {
            difference: self.difference + other.difference,
            size: self.size + other.size,
            along: self.along + other.along,
            direction: self.direction + other.direction,
            variance: self.variance + other.variance,
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

    /// The standard deviation of [`Likeness::towards_unaligned`].
    pub fn uncertainty(self) -> f64 {
        if self.direction == 0.0 { 0.0 } else { self.variance.sqrt() / self.direction }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::sketch::{shortened, sketch};
    use crate::ops::testing::random;

    fn noise(seed: u64, count: usize, scale: f64) -> Vec<f32> {
        (random(&[count], seed) * (scale / 2.0)).unwrap().to_vec1().unwrap()
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
                // What a shorter sketch tells is within its own uncertainty.
                let short = |of: &[f32]| shortened(&sketch(of));
                let pair = Pair { aligned: short(&aligned), unaligned: short(&unaligned) };
                for (weight, place) in [(&aligned, 0.0), (&unaligned, 1.0)] {
                    let likeness = Likeness::of(&short(&sum(weight, &error)), &pair);
                    let off = (likeness.towards_unaligned() - place).abs();
                    assert!(off <= 3.0 * likeness.uncertainty() + 1e-3, "{scale}: {likeness:?}");
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

//! A weight's sketch: 1024 numbers by which a quantised form of it is known, without the weight itself.
//!
//! The weight, flattened, is cut into 1024 runs; number j is Σ ε_i w_i over run j, with pseudo-random signs ε that are the
//! same for every weight. Since the signs are independent, ‖sketch(w) − sketch(w')‖² is ‖w − w'‖² in expectation, with a
//! standard deviation of about √(2/1024) of it (Alon, Matias and Szegedy 1996). The sketch is linear.

use rayon::prelude::*;

/// Numbers in a sketch.
pub const LENGTH: usize = 1024;
/// Numbers in a shortened one.
const SHORT: usize = 64;

/// ‖w − w'‖ / ‖w'‖ from two sketches.
pub fn distance(sketch: &[f32], of: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let difference: f64 = sketch.iter().zip(of).map(|(a, b)| square(a - b)).sum();
    if difference == 0.0 { 0.0 } else { (difference / of.iter().map(|x| square(*x)).sum::<f64>()).sqrt() }
}

/// The sketch of a weight's values.
pub fn sketch(values: &[f32]) -> Vec<f32> {
    let run = values.len().div_ceil(LENGTH).max(1);
    let mut sums = vec![0f32; LENGTH];
    let each = sums.par_iter_mut().zip(values.par_chunks(run)).enumerate();
    each.with_min_len(16).for_each(|(j, (sum, values))| *sum = signed_sum(values, j as u64) as f32);
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

/// A shorter sketch from a sketch: signs of different runs are independent too. A length from it is right to about 9 %.
pub fn shortened(sketch: &[f32]) -> Vec<f32> {
    sketch.chunks(LENGTH / SHORT).map(|part| part.iter().sum()).collect()
}

/// The output function of SplitMix64 (Steele, Lea and Flood 2014).
fn mixed(number: u64) -> u64 {
    let z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortened_sketches_keep_distances_too() {
        let noise = |seed: u64| (0..70_000).map(move |i| (mixed(seed << 40 | i) as f64 / u64::MAX as f64 - 0.5) as f32);
        let weight: Vec<f32> = noise(1).collect();
        for scale in [0.0, 0.05, 0.4] {
            let near: Vec<f32> = weight.iter().zip(noise(2)).map(|(a, b)| a + scale * b).collect();
            let (whole, part) = (sketch(&weight), sketch(&near));
            assert!((distance(&part, &whole) / f64::from(scale).max(1e-9) - 1.0).abs() < 0.1 || scale == 0.0);
            let short = distance(&shortened(&part), &shortened(&whole));
            assert!((short - f64::from(scale)).abs() <= 0.3 * f64::from(scale), "{scale}: {short}");
        }
    }
}

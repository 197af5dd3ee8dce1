//! Choosing a token at random by the model's probabilities.

use anyhow::{Context, Result};
use rand::SeedableRng;
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand::rngs::StdRng;

/// Whether tokens can be drawn at that temperature; 0 asks for the likeliest.
///
/// # Errors
/// What it should be, to go after its name.
pub fn check_temperature(temperature: f64) -> Result<(), String> {
    let possible = temperature >= 0.0 && temperature.is_finite();
    if possible { Ok(()) } else { Err(format!("should be 0 (the likeliest token) or more, got {temperature}")) }
}

/// Whether tokens can be drawn from that share of the probability.
///
/// # Errors
/// As [`check_temperature`].
pub fn check_top_p(top_p: f64) -> Result<(), String> {
    let possible = top_p > 0.0 && top_p <= 1.0;
    if possible { Ok(()) } else { Err(format!("should be above 0 and at most 1, got {top_p}")) }
}

/// Draws tokens of one sequence.
pub struct Sampler {
    rng: StdRng,
    temperature: f64,
    top_p: f64,
}

impl Sampler {
    /// `temperature` > 0 divides the logits; `top_p`, in (0, 1]: the share of the probability to draw from.
    pub fn new(seed: u64, temperature: f64, top_p: f64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), temperature, top_p }
    }

    /// A token, of finite logits [vocab_size].
    ///
    /// # Errors
    /// No logits.
    pub fn draw(&mut self, logits: &[f32]) -> Result<u32> {
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut weights: Vec<f64> =
            logits.iter().map(|&logit| (f64::from(logit - top) / self.temperature).exp()).collect();
        if self.top_p < 1.0 {
            keep_nucleus(&mut weights, self.top_p);
        }
        let token = WeightedIndex::new(weights).context("drawing a token")?.sample(&mut self.rng);
        Ok(u32::try_from(token)?)
    }
}

/// Nucleus sampling (arXiv 1904.09751): leaves the fewest tokens that have at least the share `top_p` together, and makes the
/// weights of all others 0. Of equally likely ones the first count.
fn keep_nucleus(weights: &mut [f64], top_p: f64) {
    let total = weights.iter().sum::<f64>();
    let enough = top_p * total;
    // All that are smaller than this have less than the rest of the probability together: the others are enough.
    let least = (1.0 - top_p) * total / weights.len() as f64;
    weights.iter_mut().filter(|weight| **weight < least).for_each(|weight| *weight = 0.0);
    let mut order: Vec<usize> = (0..weights.len()).filter(|&index| weights[index] > 0.0).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    let mut sum = 0.0;
    for index in order {
        if sum >= enough {
            weights[index] = 0.0;
        } else {
            sum += weights[index];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_as_often_as_their_probabilities_say() {
        let logits = [0.0f32, 1.0, -1.0, 2.0];
        for temperature in [0.5, 2.0] {
            let mut sampler = Sampler::new(3, temperature, 1.0);
            let mut counts = [0u32; 4];
            for _ in 0..20_000 {
                counts[sampler.draw(&logits).unwrap() as usize] += 1;
            }
            let powers = logits.map(|logit| (f64::from(logit) / temperature).exp());
            for (count, power) in counts.into_iter().zip(powers) {
                let share = power / powers.iter().sum::<f64>();
                // Five standard deviations.
                assert!((f64::from(count) / 20_000.0 - share).abs() < 5.0 * (share * (1.0 - share) / 20_000.0).sqrt());
            }
        }
    }

    #[test]
    fn any_temperature_from_0_on_can_be_drawn_at() {
        for temperature in [f64::MIN_POSITIVE, 1e-9, 0.005, 1e9, f64::MAX] {
            check_temperature(temperature).unwrap();
            let drawn = Sampler::new(1, temperature, 0.9).draw(&[-1e30, 3.0, 2.0]).unwrap();
            assert!(temperature > 1.0 || drawn == 1, "{temperature}: {drawn}");
        }
        for temperature in [-0.1, f64::NAN, f64::INFINITY] {
            check_temperature(temperature).unwrap_err();
        }
    }

    #[test]
    fn the_nucleus_is_the_fewest_likely_tokens() {
        let kept = |top_p| {
            let mut weights = [1.0, 4.0, 3.0, 2.0];
            keep_nucleus(&mut weights, top_p);
            weights.map(|weight| weight > 0.0)
        };
        assert_eq!(kept(0.3), [false, true, false, false]);
        assert_eq!(kept(0.4), [false, true, false, false]);
        assert_eq!(kept(0.41), [false, true, true, false]);
        assert_eq!(kept(0.95), [true; 4]);
        // Of a long tail as many as sorting all of them would leave.
        let tailed: Vec<f64> = (0..1000).map(|i| 1.0 / f64::from(1 + i * 7 % 1000)).collect();
        for top_p in [0.1, 0.5, 0.9, 0.999] {
            let mut weights = tailed.clone();
            keep_nucleus(&mut weights, top_p);
            let mut sorted = tailed.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let enough = top_p * sorted.iter().sum::<f64>();
            let before = sorted.iter().scan(0.0, |sum, weight| Some(std::mem::replace(sum, *sum + weight)));
            let expected = before.take_while(|before| *before < enough).count();
            assert_eq!(weights.iter().filter(|weight| **weight > 0.0).count(), expected, "{top_p}");
        }
        let mut equal = [1.0; 4];
        keep_nucleus(&mut equal, 0.5);
        assert_eq!(equal, [1.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn draws_depend_on_the_seed_alone() {
        let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32 * 0.3).collect();
        let draws = |seed| {
            let mut sampler = Sampler::new(seed, 1.0, 0.9);
            (0..20).map(|_| sampler.draw(&logits).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
        assert!(Sampler::new(1, 1.0, 1.0).draw(&[]).is_err());
    }
}

//! How likely a token was among all others.

/// The log-probability of a token, and the likeliest tokens in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Natural logarithm.
    pub log_probability: f32,
    /// (token, log-probability), the likeliest first; of equally likely ones the first comes first.
    pub top: Vec<(u32, f32)>,
}

impl Score {
    /// The score of `token`, with the `count` likeliest, by finite logits [vocab_size].
    pub fn new(logits: &[f32], token: u32, count: usize) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from((logit - max).exp())).sum();
        let normaliser = f64::from(max) + sum.ln();
        let log_probability = |logit: f32| (f64::from(logit) - normaliser) as f32;
        let top = largest(logits, count).into_iter().map(|(id, logit)| (id, log_probability(logit))).collect();
        let own = logits.get(token as usize).copied().unwrap_or(f32::MIN);
        Self { log_probability: log_probability(own), top }
    }
}

/// The `count` largest values and their places, in descending order.
fn largest(values: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for (place, &value) in (0u32..).zip(values) {
        if top.len() < count || top.last().is_some_and(|(_, least)| value > *least) {
            let at = top.partition_point(|(_, other)| *other >= value);
            top.insert(at, (place, value));
            top.truncate(count);
        }
    }
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_logarithms_of_the_softmax() {
        let logits: Vec<f32> = (0..50u8).map(|i| f32::from(i * 7 % 50) * 0.3 - 40.0).collect();
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let score = Score::new(&logits, 3, 4);
        let expected = |id: u32| f64::from(logits[id as usize]) - sum.ln();
        assert!((f64::from(score.log_probability) - expected(3)).abs() < 1e-5);
        let mut order: Vec<u32> = (0..50).collect();
        order.sort_by(|a, b| expected(*b).total_cmp(&expected(*a)));
        assert_eq!(score.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), order[..4]);
        assert!(score.top.iter().all(|(id, value)| (f64::from(*value) - expected(*id)).abs() < 1e-5));
        // The same number wherever it stands, so that clients can tell whether a token was the likeliest.
        let best = Score::new(&logits, order[0], 1);
        assert_eq!(best.top, [(order[0], best.log_probability)]);
        assert_eq!(Score::new(&logits, 3, 0).top, []);
        assert_eq!(largest(&[1.0, 3.0, 3.0, 2.0], 9), [(1, 3.0), (2, 3.0), (3, 2.0), (0, 1.0)]);
    }
}

//! A mixture's router: which experts each row goes to, and with what weights. On the host, rows side by side.
//!
//! z: [N, E] logits; p = softmax(z). A row's experts S are the K with the largest p, the lower number of two equal ones. Their
//! weights are w_j = p_j, or p_j / Σ_S p if normalised, which is a softmax over the chosen logits. Backward, from dw: dz_j =
//! w_j (dw_j − Σ_S w dw) for j in S and 0 elsewhere if normalised, else p_j (dw_j [j in S] − Σ_S p dw) for all j. The choice itself
//! has no gradient, as in transformers.

use anyhow::{Result, ensure};
use rayon::prelude::*;

/// Rows of a task: a row takes less than a task to begin.
const ROWS: usize = 64;

/// The choice of N rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Routing {
    experts: usize,
    normalised: bool,
    /// [N, E]
    probabilities: Vec<f64>,
    /// [N, K], by falling probability
    pub chosen: Vec<usize>,
    /// [N, K]
    pub weights: Vec<f32>,
    per_row: usize,
}

impl Routing {
    /// logits: [N, E], row after row; K = `per_row` of E = `experts`.
    pub fn new(logits: &[f32], experts: usize, per_row: usize, normalised: bool) -> Result<Self> {
        ensure!(
            (1..=experts).contains(&per_row) && logits.len().is_multiple_of(experts),
            "{per_row} of {experts} experts, from {} logits",
            logits.len()
        );
        let places = logits.len() / experts * per_row;
        let (mut chosen, mut weights) = (vec![0; places], vec![0.0; places]);
        let mut probabilities = vec![0.0; logits.len()];
        let rows = logits.par_chunks(experts).zip(probabilities.par_chunks_mut(experts));
        let rows = rows.zip(chosen.par_chunks_mut(per_row).zip(weights.par_chunks_mut(per_row)));
        rows.with_min_len(ROWS).for_each_init(Vec::new, |order, ((logits, p), (chosen, weights))| {
            soften(logits, p);
            choose(logits, order, chosen);
            let total = if normalised { chosen.iter().map(|&expert| p[expert]).sum() } else { 1.0 };
            for (weight, &expert) in weights.iter_mut().zip(&*chosen) {
                *weight = (p[expert] / total) as f32;
            }
        });
        Ok(Self { experts, normalised, probabilities, chosen, weights, per_row })
    }

    /// The rows of each expert that has any, by the expert's number: (expert, rows, places in [N, K]).
    pub fn by_expert(&self) -> Vec<(usize, Vec<u32>, Vec<usize>)> {
        let mut all = vec![(vec![], vec![]); self.experts];
        for (place, &expert) in self.chosen.iter().enumerate() {
            let (rows, places) = &mut all[expert];
            rows.push((place / self.per_row) as u32);
            places.push(place);
        }
        let all = all.into_iter().enumerate().filter(|(_, (rows, _))| !rows.is_empty());
        all.map(|(expert, (rows, places))| (expert, rows, places)).collect()
    }

    /// dw: [N, K] -> dz: [N, E]
    pub fn backward(&self, dw: &[f32]) -> Vec<f32> {
        let mut dz = vec![0.0; self.probabilities.len()];
        let rows = dw.par_chunks(self.per_row).zip(self.chosen.par_chunks(self.per_row));
        let rows = rows.zip(self.probabilities.par_chunks(self.experts).zip(dz.par_chunks_mut(self.experts)));
        rows.with_min_len(ROWS).for_each(|((dw, chosen), (p, dz))| {
            let total = if self.normalised { chosen.iter().map(|&expert| p[expert]).sum() } else { 1.0 };
            let weights = || chosen.iter().map(|&expert| p[expert] / total).zip(dw.iter().map(|&dw| f64::from(dw)));
            let mean: f64 = weights().map(|(w, dw)| w * dw).sum();
            if !self.normalised {
                dz.iter_mut().zip(p).for_each(|(dz, p)| *dz = (-p * mean) as f32);
            }
            for (&expert, (w, dw)) in chosen.iter().zip(weights()) {
                dz[expert] = (w * (dw - mean)) as f32;
            }
        });
        dz
    }
}

/// p = softmax(z)
fn soften(logits: &[f32], p: &mut [f64]) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for (p, z) in p.iter_mut().zip(logits) {
        *p = f64::from(z - largest).exp();
    }
    let sum: f64 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= sum);
}

/// The experts with the largest logits, largest first; of equals the first. `order` is room to work in.
fn choose(logits: &[f32], order: &mut Vec<usize>, chosen: &mut [usize]) {
    let falling = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    order.clear();
    order.extend(0..logits.len());
    order.select_nth_unstable_by(chosen.len() - 1, falling);
    order.truncate(chosen.len());
    order.sort_unstable_by(falling);
    chosen.copy_from_slice(order);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 10] = [0.3, -1.0, 0.9, 0.31, 0.0, -2.0, 1.5, 1.49, 0.2, 1.4];

    #[test]
    fn the_largest_are_chosen_and_of_equals_the_first() {
        let routing = Routing::new(&LOGITS, 5, 2, true).unwrap();
        assert_eq!(routing.chosen, [2, 3, 1, 2]);
        assert!((routing.weights[0] + routing.weights[1] - 1.0).abs() < 1e-6);
        assert_eq!(routing.by_expert()[1], (2, vec![0, 1], vec![0, 3]));
        let equal = Routing::new(&[0.5, 0.5, 0.5, 0.1], 4, 2, false).unwrap();
        assert_eq!(equal.chosen, [0, 1]);
        assert!(Routing::new(&LOGITS, 5, 6, true).is_err() && Routing::new(&LOGITS, 3, 1, true).is_err());
    }

    /// Against a stable sort of all experts, with many equal logits, in pools of one thread and of several.
    #[test]
    fn every_row_is_routed_alike_whatever_the_threads() {
        let (experts, per_row) = (37, 6);
        let logits: Vec<f32> = (0..500 * experts).map(|i| (i * 7_919 % 23) as f32 / 4.0 - 2.0).collect();
        let dw: Vec<f32> = (0..500 * per_row).map(|i| (i * 31 % 17) as f32 - 8.0).collect();
        let routed = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let routing = Routing::new(&logits, experts, per_row, false).unwrap();
                let dz = routing.backward(&dw);
                (routing, dz)
            })
        };
        let (one, several) = (routed(1), routed(3));
        assert_eq!(one, several);
        for (logits, chosen) in logits.chunks(experts).zip(one.0.chosen.chunks(per_row)) {
            let mut order: Vec<usize> = (0..experts).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            assert_eq!(chosen, &order[..per_row]);
        }
    }

    #[test]
    fn the_gradient_matches_finite_differences() {
        let dw = [0.7f32, -0.4, 1.1, 0.3, 0.2, -0.9];
        for normalised in [true, false] {
            let value = |logits: &[f32]| -> f64 {
                let routing = Routing::new(logits, 5, 3, normalised).unwrap();
                routing.weights.iter().zip(dw).map(|(w, dw)| f64::from(*w) * f64::from(dw)).sum()
            };
            let got = Routing::new(&LOGITS, 5, 3, normalised).unwrap().backward(&dw);
            for (i, got) in got.into_iter().enumerate() {
                let [above, below] = [1e-3f32, -1e-3].map(|step| {
                    let mut moved = LOGITS;
                    moved[i] += step;
                    value(&moved)
                });
                let expected = (above - below) / 2e-3;
                assert!((f64::from(got) - expected).abs() < 1e-4, "{normalised} {i}: {got} {expected}");
            }
        }
    }
}

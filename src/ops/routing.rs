//! A mixture's router: which experts each row goes to, and with what weights. On the host: rows are few beside what experts compute.
//!
//! z: [N, E] logits; p = softmax(z). A row's experts S are the K with the largest p, the lower number of two equal ones. Their
//! weights are w_j = p_j, or p_j / Σ_S p if normalised, which is a softmax over the chosen logits. Backward, from dw: dz_j =
//! w_j (dw_j − Σ_S w dw) for j in S and 0 elsewhere if normalised, else p_j (dw_j [j in S] − Σ_S p dw) for all j. The choice itself
//! has no gradient, as in transformers.

use anyhow::{Result, ensure};

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
        let mut routing = Self { experts, normalised, probabilities: vec![], chosen: vec![], weights: vec![], per_row };
        for row in logits.chunks(experts) {
            routing.route(row);
        }
        Ok(routing)
    }

    fn route(&mut self, logits: &[f32]) {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let powers: Vec<f64> = logits.iter().map(|z| f64::from(z - largest).exp()).collect();
        let sum: f64 = powers.iter().sum();
        let p: Vec<f64> = powers.into_iter().map(|power| power / sum).collect();
        let mut order: Vec<usize> = (0..p.len()).collect();
        // Stable: of equals the first stays first.
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        order.truncate(self.per_row);
        let total = if self.normalised { order.iter().map(|&expert| p[expert]).sum() } else { 1.0 };
        self.weights.extend(order.iter().map(|&expert| (p[expert] / total) as f32));
        self.chosen.extend(order);
        self.probabilities.extend(p);
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
        let rows = dw.chunks(self.per_row).zip(self.chosen.chunks(self.per_row));
        let rows = rows.zip(self.probabilities.chunks(self.experts));
        rows.flat_map(|((dw, chosen), p)| {
            let total = if self.normalised { chosen.iter().map(|&expert| p[expert]).sum() } else { 1.0 };
            let weights = || chosen.iter().map(|&expert| p[expert] / total).zip(dw.iter().map(|&dw| f64::from(dw)));
            let mean: f64 = weights().map(|(w, dw)| w * dw).sum();
            let mut dz = vec![0.0; self.experts];
            if !self.normalised {
                dz.iter_mut().zip(p).for_each(|(dz, p)| *dz = -p * mean);
            }
            for (&expert, (w, dw)) in chosen.iter().zip(weights()) {
                dz[expert] += if self.normalised { w * (dw - mean) } else { w * dw };
            }
            dz.into_iter().map(|dz| dz as f32)
        })
        .collect()
    }
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

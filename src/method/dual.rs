//! λ by dual ascent: `asft.lambda = "auto"`.
//!
//! The penalty's weight is the multiplier of a constraint,
//!
//! ```text
//! min task loss   subject to   q = sqrt(Σ ‖M ΔW‖_F² / Σ ‖W‖_F²) ≤ ε = asft.max_orthogonal
//! ```
//!
//! summed over the targeted modules, with W the weights that training starts from, ΔW the effective update (LoRA: alpha
//! / r · B A) and M what `asft.penalize` says. The reference is ‖W‖ and not ‖ΔW‖: as C's eigenvalues are tiny, ‖(I − C)
//! ΔW‖ / ‖ΔW‖ is close to 1 whatever λ is, and no λ could lower it.
//!
//! λ changes by a factor after each step, as its scale is not known beforehand. With g_t = ln(q_t / 0.95 ε) clamped to
//! ±1,
//!
//! ```text
//! λ_{t+1} = λ_t exp(η g_t + κ (g_t − g_{t−1})),   η = 0.2 if g_t > 0 else 0.1,   κ = 2
//! λ_1 = 1,   λ within [1e-4, 1e4]
//! ```
//!
//! The first term is plain dual ascent in ln λ; it comes to rest only where q = 0.95 ε, or at λ's lower bound if q stays
//! below that without a penalty. By itself it keeps overshooting, because ΔW responds to λ with a delay. The second term
//! responds at once (Stooke, Achiam and Abbeel, arXiv 2007.03964, for the Lagrangians of constrained reinforcement
//! learning). Aiming 5 % below ε, and coming down more slowly than going up, keeps q under the bound while it oscillates
//! about the target.

use serde::{Deserialize, Serialize};

/// η if the share is above its target, and if it is below.
const RATES: (f64, f64) = (0.2, 0.1);
/// κ
const DAMPING: f64 = 2.0;
/// The target for the share, as a fraction of the bound.
const TARGET: f64 = 0.95;
/// λ_1: the released penalty.
const START: f64 = 1.0;
/// The range that λ is kept in.
pub const BOUNDS: (f64, f64) = (1e-4, 1e4);

/// The multiplier, and what its next change depends on. Part of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dual {
    pub lambda: f64,
    /// g after the last step.
    excess: Option<f64>,
}

impl Default for Dual {
    fn default() -> Self {
        Self { lambda: START, excess: None }
    }
}

impl Dual {
    /// Changes λ after a step whose update had the share `share` (q), under the bound `limit` (ε > 0).
    pub fn ascend(&mut self, share: f64, limit: f64) {
        // ln 0 is −∞, which is clamped; NaN, which no accepted step has, would not be.
        let excess = (share / (TARGET * limit)).ln().clamp(-1.0, 1.0);
        let rate = if excess > 0.0 { RATES.0 } else { RATES.1 };
        let change = excess - self.excess.unwrap_or(excess);
        let (low, high) = BOUNDS;
        self.lambda = (self.lambda * (rate * excess + DAMPING * change).exp()).clamp(low, high);
        self.excess = Some(excess);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A share that follows 1 / (1 + λ) with a delay, as an optimizer's update does.
    #[test]
    fn the_multiplier_settles_where_the_constraint_holds() {
        for limit in [0.5, 0.1, 0.01] {
            let (mut dual, mut share) = (Dual::default(), 0.0);
            let mut worst = 0f64;
            for step in 0..400 {
                share += 0.05 * (1.0 / (1.0 + dual.lambda) - share);
                dual.ascend(share, limit);
                worst = if step >= 300 { worst.max((share / limit / TARGET - 1.0).abs()) } else { 0.0 };
            }
            assert!(worst < 0.01, "{limit}: {worst}");
            let expected = 1.0 / (TARGET * limit) - 1.0;
            assert!((dual.lambda / expected - 1.0).abs() < 0.05, "{limit}: {}", dual.lambda);
        }
    }

    #[test]
    fn it_stays_within_bounds_whatever_the_share() {
        for (share, bound) in [(0.0, BOUNDS.0), (1e300, BOUNDS.1), (1e-9, BOUNDS.0)] {
            let mut dual = Dual::default();
            (0..200).for_each(|_| dual.ascend(share, 0.01));
            assert_eq!(dual.lambda, bound);
            let read: Dual = serde_json::from_str(&serde_json::to_string(&dual).unwrap()).unwrap();
            assert_eq!(read, dual);
        }
    }
}

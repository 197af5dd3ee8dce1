//! What a run carries from step to step besides parameters and optimizer.
//!
//! There is no generator state: the order of the samples, the packing and the dropout masks are pure functions of
//! `train.seed` and the step's number, so the step number is enough.

use crate::method::Dual;
use crate::report::{LossEnds, SuiteRow, Totals, Trend};
use serde::{Deserialize, Serialize};

/// Where a run stands after a step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Optimizer steps done, skipped ones included: the position in the data.
    pub step: usize,
    pub totals: Totals,
    /// Losses of the first and the last step taken.
    pub first: Option<Losses>,
    pub last: Option<Losses>,
    #[serde(default)]
    pub trend: Trend,
    /// Consecutive skipped steps up to here.
    pub bad_steps: usize,
    /// The last validation.
    pub eval: Option<Evaluation>,
    /// The validation with the lowest loss.
    pub best: Option<Evaluation>,
    /// Validations since the best.
    pub evals_since_best: usize,
    /// What the suite found before the first step.
    #[serde(default)]
    pub before: Option<SuiteRow>,
    /// The step after which the suite was last measured.
    #[serde(default)]
    pub evaluated_at: Option<usize>,
    /// Seconds of training, preparation excluded.
    pub training_seconds: f64,
    /// Length of `metrics.jsonl`.
    pub metrics_bytes: u64,
    /// Length of `modules.jsonl`.
    #[serde(default)]
    pub modules_bytes: u64,
    /// λ, if it is found while training.
    #[serde(default)]
    pub dual: Option<Dual>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    pub loss: f64,
    pub penalty: f64,
}

/// A validation with a finite loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    pub step: usize,
    pub loss: f64,
    pub label_tokens: usize,
}

impl RunState {
    /// The losses at both ends; `None` before the first step that was taken.
    pub fn loss(&self) -> Option<LossEnds> {
        // Checkpoints of older versions have no trend.
        let single = |(first, last): (Losses, Losses)| LossEnds {
            steps: 1,
            first: first.loss,
            last: last.loss,
            above_start: false,
        };
        self.trend.ends().or(self.first.zip(self.last).map(single))
    }

    /// Records a validation after the current step; returns whether it is the best so far. A loss that is not finite
    /// never is.
    pub fn validated(&mut self, loss: f64, label_tokens: usize) -> bool {
        let evaluation = Evaluation { step: self.step, loss, label_tokens };
        self.eval = loss.is_finite().then_some(evaluation);
        let best = loss.is_finite() && self.best.is_none_or(|best| loss < best.loss);
        if best {
            (self.best, self.evals_since_best) = (Some(evaluation), 0);
        } else {
            self.evals_since_best += 1;
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_validation_is_the_first_lowest() {
        let mut state = RunState::default();
        let mut best_at = vec![];
        for (step, loss) in [2.0, 1.5, f64::NAN, 1.5, 1.4].into_iter().enumerate() {
            state.step = step;
            if state.validated(loss, 9) {
                best_at.push(step);
            }
            assert_eq!(state.evals_since_best, step - best_at[best_at.len() - 1]);
        }
        assert_eq!(best_at, [0, 1, 4]);
    }

    #[test]
    fn every_number_survives_the_state_file() {
        let mut state = RunState { training_seconds: 1.0 / 3.0, ..RunState::default() };
        for i in 1..2000 {
            state.validated((i as f64).sqrt().recip() * 1e-3, i);
            let read: RunState = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
            assert_eq!(read, state);
        }
    }
}

//! Where the loss of a run came from and went to. Single steps are noisy, so means over several are compared.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Most steps that a mean is over.
const WINDOW: usize = 20;
/// Steps that the judgement of a loss is over, and for which it has to hold.
const JUDGED: usize = 10;
/// The start is the mean of so many first steps.
const START: usize = 5;

/// The losses at both ends of a run so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trend {
    steps: usize,
    first: Vec<f64>,
    last: VecDeque<f64>,
    /// Successive steps for which the loss has been far above its start.
    above: usize,
    warned: bool,
}

/// Mean losses at both ends of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossEnds {
    /// Steps that each of the two is the mean of.
    pub steps: usize,
    pub first: f64,
    pub last: f64,
    /// Whether, at the end, the loss has been far above its start for long.
    pub above_start: bool,
}

impl Trend {
    /// Records the loss of a step. Returns (start, now) when the loss has been far above its start for long, once.
    pub fn step(&mut self, loss: f64) -> Option<(f64, f64)> {
        self.steps += 1;
        if self.first.len() < WINDOW {
            self.first.push(loss);
        }
        self.last.push_back(loss);
        if self.last.len() > WINDOW {
            self.last.pop_front();
        }
        let (start, now) = (self.start(), mean(self.last.iter().rev().take(JUDGED)));
        // The margin is for batches that differ; it is wide, as a false alarm costs more trust than a late one.
        let high = self.steps > JUDGED && now > 1.5 * start + 0.5;
        self.above = if high { self.above + 1 } else { 0 };
        let says = self.is_above() && !self.warned;
        self.warned |= says;
        says.then_some((start, now))
    }

    fn is_above(&self) -> bool {
        self.above >= JUDGED
    }

    /// The mean of the first steps; a run that fails at once has only its very first to show what was normal.
    fn start(&self) -> f64 {
        let limit = self.first.first().map_or(0.0, |loss| 2.0 * loss + 1.0);
        mean(self.first.iter().take(START)).min(limit)
    }

    /// `None` before the first step.
    pub fn ends(&self) -> Option<LossEnds> {
        let steps = (self.steps / 5).clamp(1, WINDOW);
        (self.steps > 0).then(|| LossEnds {
            steps,
            first: mean(self.first.iter().take(steps)),
            last: mean(self.last.iter().rev().take(steps)),
            above_start: self.is_above(),
        })
    }
}

fn mean<'a>(losses: impl ExactSizeIterator<Item = &'a f64>) -> f64 {
    let count = losses.len().max(1) as f64;
    losses.sum::<f64>() / count
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The step at which it warns.
    fn warns(losses: impl IntoIterator<Item = f64>) -> (Option<usize>, LossEnds) {
        let mut trend = Trend::default();
        let steps: Vec<usize> =
            losses.into_iter().enumerate().filter_map(|(i, loss)| trend.step(loss).map(|_| i + 1)).collect();
        assert!(steps.len() <= 1, "{steps:?}");
        (steps.first().copied(), trend.ends().unwrap())
    }

    #[test]
    fn a_loss_far_above_its_start_is_told_once() {
        // At once, after a while, and from a low start.
        let (at, ends) = warns((0..48).map(|i| if i == 0 { 2.4 } else { 1e6 }));
        assert!(at == Some(20) && ends.above_start && ends.steps == 9, "{at:?} {ends:?}");
        assert!(warns((0..60).map(|i| 2.0 + f64::from(i))).0.is_some());
        // Not a noisy one, a flat one, a short one, or one that came down again.
        let noisy = |i: u32| if i.is_multiple_of(3) { 3.0 } else { 0.4 };
        assert_eq!(warns((0..200).map(noisy)).0, None);
        assert_eq!(warns((0..15).map(|i| 1.0 + f64::from(i))).0, None);
        assert_eq!(warns((0..100).map(|i| if i < 15 { 9.0 } else { 2.0 })).0, None);
        let (at, ends) = warns((0..100).map(|i| if (1..40).contains(&i) { 90.0 } else { 2.0 }));
        assert!(at.is_some() && !ends.above_start, "{ends:?}");
    }

    #[test]
    fn both_ends_are_means_over_as_many_steps_as_there_are() {
        let ends = |steps: u32| warns((0..steps).map(f64::from)).1;
        assert_eq!((ends(1).steps, ends(1).first, ends(1).last), (1, 0.0, 0.0));
        assert_eq!((ends(10).steps, ends(10).first, ends(10).last), (2, 0.5, 8.5));
        assert_eq!((ends(1000).steps, ends(1000).first, ends(1000).last), (20, 9.5, 989.5));
    }
}

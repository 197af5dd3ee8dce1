//! Learning-rate schedules: linear warm-up from 0, then a fall to 0 (cosine, linear), a constant rate, or a rate that
//! is multiplied by gamma after each epoch (step).
//!
//! Steps are optimizer steps and count from 0, so with warm-up the first step's rate is 0. Warm-up, cosine and linear
//! are those of transformers' `get_{cosine,linear,constant}_schedule_with_warmup`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the learning rate changes after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Half a cosine wave, from the peak to 0 at the last step.
    #[default]
    Cosine,
    /// A straight line from the peak to 0 at the last step.
    Linear,
    /// The peak throughout.
    Constant,
    /// The peak, times gamma after each epoch.
    Step,
}

/// A learning rate for every optimizer step of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    pub kind: ScheduleKind,
    pub peak: f64,
    pub gamma: f64,
    pub warmup_steps: usize,
    pub total_steps: usize,
    pub steps_per_epoch: usize,
}

impl Schedule {
    /// The learning rate of optimizer step `step`, the first being 0.
    pub fn learning_rate(&self, step: usize) -> f64 {
        self.peak * self.factor(step)
    }

    fn factor(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return step as f64 / self.warmup_steps as f64;
        }
        let falling_steps = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = (step - self.warmup_steps) as f64 / falling_steps as f64;
        match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => (1.0 - progress).max(0.0),
            // Past the end a cosine would rise again.
            ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos()),
            ScheduleKind::Step => self.gamma.powf((step / self.steps_per_epoch.max(1)) as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind, warmup_steps: usize) -> Schedule {
        Schedule { kind, peak: 5e-5, gamma: 0.85, warmup_steps, total_steps: 10, steps_per_epoch: 4 }
    }

    fn assert_rates(schedule: &Schedule, expected: [f64; 10]) {
        for (step, expected) in expected.into_iter().enumerate() {
            let got = schedule.learning_rate(step);
            assert!((got - expected).abs() <= 1e-12 * expected, "{schedule:?} step {step}: {got} is not {expected}");
        }
    }

    // torch 2.15, transformers 5.23:
    //     import torch, transformers as t
    //     def rates(make):
    //         optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=5e-5)
    //         scheduler, out = make(optimizer), []
    //         for _ in range(10):
    //             out.append(optimizer.param_groups[0]["lr"]); optimizer.step(); scheduler.step()
    //         return out
    //     rates(lambda o: t.get_cosine_schedule_with_warmup(o, 3, 10))
    //     rates(lambda o: t.get_cosine_schedule_with_warmup(o, 0, 10))
    //     rates(lambda o: t.get_linear_schedule_with_warmup(o, 3, 10))
    //     rates(lambda o: t.get_constant_schedule_with_warmup(o, 3))
    #[test]
    fn warmup_cosine_linear_and_constant_equal_transformers() {
        let (rise1, rise2, peak) = (1.6666666666666667e-05, 3.3333333333333335e-05, 5e-05);
        let cosine = [
            0.0,
            rise1,
            rise2,
            peak,
            4.752422169756048e-05,
            4.058724504646834e-05,
            3.056302334890786e-05,
            1.9436976651092144e-05,
            9.412754953531663e-06,
            2.475778302439524e-06,
        ];
        assert_rates(&schedule(ScheduleKind::Cosine, 3), cosine);
        let cosine_at_once = [
            peak,
            4.877641290737884e-05,
            4.522542485937369e-05,
            3.969463130731183e-05,
            3.272542485937369e-05,
            2.5e-05,
            1.7274575140626318e-05,
            1.0305368692688174e-05,
            4.7745751406263165e-06,
            1.2235870926211619e-06,
        ];
        assert_rates(&schedule(ScheduleKind::Cosine, 0), cosine_at_once);
        let linear = [
            0.0,
            rise1,
            rise2,
            peak,
            4.2857142857142856e-05,
            3.571428571428572e-05,
            2.857142857142857e-05,
            2.1428571428571428e-05,
            1.4285714285714285e-05,
            7.142857142857143e-06,
        ];
        assert_rates(&schedule(ScheduleKind::Linear, 3), linear);
        let constant = [0.0, rise1, rise2, peak, peak, peak, peak, peak, peak, peak];
        assert_rates(&schedule(ScheduleKind::Constant, 3), constant);
    }

    #[test]
    fn step_multiplies_by_gamma_after_each_epoch() {
        let (first, second, third) = (5e-5, 5e-5 * 0.85, 5e-5 * 0.85 * 0.85);
        let expected = [first, first, first, first, second, second, second, second, third, third];
        assert_rates(&schedule(ScheduleKind::Step, 0), expected);
    }

    #[test]
    fn nothing_divides_by_zero_or_rises_past_the_end() {
        for kind in [ScheduleKind::Cosine, ScheduleKind::Linear] {
            assert_eq!(schedule(kind, 3).learning_rate(11), 0.0);
            let empty = Schedule { total_steps: 0, steps_per_epoch: 0, ..schedule(kind, 0) };
            assert_eq!(empty.learning_rate(0), 5e-5);
        }
        assert!(schedule(ScheduleKind::Constant, 20).learning_rate(9) < 5e-5);
    }
}

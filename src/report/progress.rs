//! The progress of training on stderr: a bar on a terminal, a log line now and then elsewhere (files, CI), nothing when
//! quiet.

use super::{EvalRow, StepRow, SuiteRow, says_nothing, short};
use crate::console::{log, resumed_bar};
use indicatif::{HumanDuration, ProgressBar};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Without a terminal, a line at least this often however long the steps are.
const LINE_EVERY: Duration = Duration::from_secs(30);
/// ... and about this many lines over the run.
const LINES_PER_RUN: usize = 10;

/// The progress of training.
pub struct TrainProgress {
    total_steps: usize,
    /// Steps done before this process.
    first_step: usize,
    began: Instant,
    shown: Shown,
}

enum Shown {
    Bar(ProgressBar),
    Lines(Rhythm),
}

impl TrainProgress {
    /// `first_step`: steps that an earlier process has done.
    pub fn new(total_steps: usize, first_step: usize) -> Self {
        let shown = if log::draws_bars() {
            Shown::Bar(resumed_bar(total_steps, first_step, "train"))
        } else {
            Shown::Lines(Rhythm::new(total_steps))
        };
        Self { total_steps, first_step, began: Instant::now(), shown }
    }

    /// Shows a finished step.
    pub fn step(&mut self, row: &StepRow) {
        let elapsed = self.began.elapsed();
        let due = match &mut self.shown {
            Shown::Bar(bar) => {
                bar.set_message(step_text(row));
                bar.set_position(row.step as u64);
                false
            }
            Shown::Lines(rhythm) => rhythm.is_due(row.step, elapsed),
        };
        if due || log::is_verbose() {
            let done = row.step.saturating_sub(self.first_step).max(1);
            let left = self.total_steps.saturating_sub(row.step) as f64 / done as f64;
            let eta = HumanDuration(elapsed.mul_f64(left));
            let text = format!("step {}/{} {}, {eta:#} left", row.step, self.total_steps, step_text(row));
            log::info(&text, fields(row));
        }
    }

    /// Shows a finished validation.
    pub fn eval(&self, row: &EvalRow) {
        let (step, total, loss) = (row.step, self.total_steps, short(row.eval_loss));
        let text = format!("step {step}/{total} validation loss {loss} over {} tokens", row.eval_tokens);
        log::info(&text, fields(row));
    }

    /// Shows what a suite found. The time left is judged from here on if no step is done yet.
    pub fn suite(&mut self, row: &SuiteRow) {
        if row.step == self.first_step {
            self.began = Instant::now();
            if let Shown::Bar(bar) = &self.shown {
                bar.reset_elapsed();
            }
        }
        let told = row.readings().into_iter().filter(|(name, value)| !says_nothing(name, value.number()));
        let values: Vec<String> = told.map(|(name, value)| format!("{name} {}", value.text())).collect();
        log::info(&format!("step {}/{} {}", row.step, self.total_steps, values.join(", ")), fields(row));
    }

    /// Takes the bar away: of a hundred runs in one process a hundred would be left.
    pub fn finish(self) {
        if let Shown::Bar(bar) = self.shown {
            bar.finish_and_clear();
        }
    }
}

fn fields(row: &impl serde::Serialize) -> Value {
    serde_json::to_value(row).unwrap_or_default()
}

fn step_text(row: &StepRow) -> String {
    format!("loss {} penalty {} {:.0} tokens/s", short(row.loss), short(row.penalty), row.tokens_per_second)
}

/// Decides which steps get a line: the first, the last, every tenth of the run, and one after each long silence.
struct Rhythm {
    total_steps: usize,
    every: usize,
    last_line: Duration,
}

impl Rhythm {
    fn new(total_steps: usize) -> Self {
        Self { total_steps, every: total_steps.div_ceil(LINES_PER_RUN).max(1), last_line: Duration::ZERO }
    }

    fn is_due(&mut self, step: usize, elapsed: Duration) -> bool {
        let silent = elapsed.saturating_sub(self.last_line) >= LINE_EVERY;
        let due = step == 1 || step == self.total_steps || step.is_multiple_of(self.every) || silent;
        if due {
            self.last_line = elapsed;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics::tests::row;
    use super::*;

    fn steps_with_a_line(total: usize, seconds_per_step: u64) -> Vec<usize> {
        let mut rhythm = Rhythm::new(total);
        let elapsed = |step| Duration::from_secs(step as u64 * seconds_per_step);
        (1..=total).filter(|step| rhythm.is_due(*step, elapsed(*step))).collect()
    }

    #[test]
    fn lines_come_every_tenth_or_after_a_silence() {
        assert_eq!(steps_with_a_line(50, 0), [1, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50]);
        assert_eq!(steps_with_a_line(3, 0), [1, 2, 3]);
        // Steps of 8 seconds: the fourth after a line ends a silence of 32 seconds.
        assert_eq!(steps_with_a_line(30, 8), [1, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30]);
        assert_eq!(steps_with_a_line(100, 8)[..7], [1, 5, 9, 10, 14, 18, 20]);
    }

    #[test]
    fn a_line_says_loss_penalty_and_speed() {
        assert_eq!(step_text(&row(1)), "loss 0.3000 penalty 1.000e-300 1234 tokens/s");
        assert_eq!(
            (short(0.0), short(0.00012345), short(f64::NAN)),
            ("0.0000".into(), "1.234e-4".into(), "NaN".into())
        );
    }

    #[test]
    fn a_suite_before_the_first_step_is_no_part_of_its_time() {
        let mut progress = TrainProgress::new(9, 2);
        let began = progress.began;
        progress.suite(&SuiteRow { step: 4, evaluations: vec![] });
        assert_eq!(progress.began, began);
        progress.suite(&SuiteRow { step: 2, evaluations: vec![] });
        assert!(progress.began > began);
        progress.finish();
    }

    #[test]
    fn piped_runs_do_not_fail() {
        let mut progress = TrainProgress::new(2, 0);
        progress.step(&row(1));
        progress.eval(&EvalRow { step: 1, eval_loss: 1.0, eval_tokens: 3 });
        progress.step(&row(2));
        progress.finish();
    }
}

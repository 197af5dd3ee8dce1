//! Progress on stderr: a bar on a terminal, a log line now and then elsewhere (files, CI), nothing when quiet.

use super::{EvalRow, StepRow, log};
use indicatif::{DecimalBytes, HumanDuration, ProgressBar, ProgressState, ProgressStyle};
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Without a terminal, a line at least this often however long the steps are.
const LINE_EVERY: Duration = Duration::from_secs(30);
/// ... and about this many lines over the run.
const LINES_PER_RUN: usize = 10;
/// A bar says what matters first: a narrow terminal cuts the message short, and no bar goes over two lines.
const BAR: &str = "{prefix} {bar:20} {pos}/{len} eta {left} {wide_msg}";
const DOWNLOAD: &str = "{bar:16} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} eta {left} {wide_msg}";
/// A bar whose items take long counts down meanwhile.
const TICK: Duration = Duration::from_millis(500);

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
            Shown::Bar(progress_bar(total_steps, "train").with_position(first_step as u64))
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

/// A bar for `len` items of work that is not training (`what`: "tokenising", say). Drawn only on a terminal.
pub fn progress_bar(len: usize, what: &'static str) -> ProgressBar {
    drawn(ProgressBar::new(len as u64), BAR).with_prefix(what)
}

/// A bar for a download of `bytes`; a line instead where no bars are drawn.
pub fn download_bar(what: &str, bytes: u64, quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    if !log::draws_bars() {
        log::info(&format!("fetching {what} ({})", DecimalBytes(bytes)), json!({"file": what, "bytes": bytes}));
        return ProgressBar::hidden();
    }
    drawn(ProgressBar::new(bytes), DOWNLOAD).with_message(what.to_string())
}

fn drawn(bar: ProgressBar, template: &str) -> ProgressBar {
    let bar = log::shown(bar).with_style(style(template));
    if log::draws_bars() {
        bar.enable_steady_tick(TICK);
    }
    bar
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("the template is a constant");
    style.progress_chars("━╸─").with_key("left", |state: &ProgressState, text: &mut dyn Write| {
        // Before the first item is done nobody knows.
        let _infallible = match state.pos() {
            0 => write!(text, "-"),
            _ => write!(text, "{:#}", HumanDuration(state.eta())),
        };
    })
}

fn step_text(row: &StepRow) -> String {
    format!("loss {} penalty {} {:.0} tokens/s", short(row.loss), short(row.penalty), row.tokens_per_second)
}

/// Four digits that matter.
fn short(value: f64) -> String {
    let plain = value == 0.0 || (1e-3..1e5).contains(&value.abs()) || !value.is_finite();
    if plain { format!("{value:.4}") } else { format!("{value:.3e}") }
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
    use indicatif::{ProgressDrawTarget, TermLike};
    use std::io::Result;
    use std::sync::{Arc, Mutex};

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

    /// A terminal of 60 columns that keeps what is written to it.
    #[derive(Clone, Debug, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl Screen {
        fn write(&self, text: &str) -> Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }

        /// What `change` has a bar draw.
        fn after(&self, change: impl FnOnce()) -> String {
            self.0.lock().unwrap().clear();
            change();
            self.0.lock().unwrap().trim_end().to_string()
        }
    }

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            60
        }
        fn move_cursor_up(&self, _: usize) -> Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> Result<()> {
            self.write(&format!("{text}\n"))
        }
        fn write_str(&self, text: &str) -> Result<()> {
            self.write(text)
        }
        fn clear_line(&self) -> Result<()> {
            Ok(())
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bars_fit_a_narrow_terminal_and_tell_the_time_left() {
        let screen = Screen::default();
        let bar = |length, template| {
            let target = ProgressDrawTarget::term_like(Box::new(screen.clone()));
            ProgressBar::with_draw_target(Some(length), target).with_style(style(template))
        };
        let train = bar(40, BAR).with_prefix("train");
        let text = screen.after(|| train.tick());
        assert!(text.ends_with(" 0/40 eta -"), "{text}");
        train.set_position(39);
        let text = screen.after(|| train.set_message(step_text(&row(1))));
        assert!(text.chars().count() <= 60 && text.contains(" 39/40 eta ") && text.contains("s loss 0.3000"), "{text}");
        let download = bar(17_000_000_000, DOWNLOAD);
        download.set_position(16_000_000_000);
        let text = screen.after(|| download.set_message("an-organisation/a-model/model-00001-of-00002.safetensors"));
        assert!(text.chars().count() <= 60 && text.contains("/17.00 GB ") && text.contains(" eta "), "{text}");
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

//! Bars: drawn on a terminal, for a person; hidden elsewhere (files, CI) and when quiet.

use super::log;
use console::Term;
use indicatif::{DecimalBytes, HumanDuration, ProgressBar, ProgressState, ProgressStyle};
use serde_json::json;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A bar says what matters first: a narrow terminal cuts the message short, and no bar takes two lines.
const BAR: &str = "{prefix} {bar:WIDTH} {pos}/{len} eta {left} {wide_msg}";
const BYTES: &str = "{prefix} {bar:WIDTH} {decimal_bytes}/{decimal_total_bytes} eta {left} {wide_msg}";
const DOWNLOAD: &str =
    "{bar:WIDTH} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} eta {left} {wide_msg}";
/// Columns that the words beside a bar take; it has the others.
const WORDS: u16 = 60;
const NARROWEST: u16 = 12;
/// A bar whose items take long counts down in between.
const TICK: Duration = Duration::from_millis(500);

/// A bar for `len` items of work that is not training (`what`: "tokenising", say). Drawn only on a terminal.
pub fn progress_bar(len: usize, what: &'static str) -> ProgressBar {
    resumed_bar(len, 0, what)
}

/// As [`progress_bar`], for work of which another process has done the first `done` items: the time left is judged by
/// those of this one.
pub fn resumed_bar(len: usize, done: usize, what: &'static str) -> ProgressBar {
    drawn(ProgressBar::new(len as u64).with_position(done as u64), BAR, done as u64).with_prefix(what)
}

/// A bar for reading bytes, whose number is to be told. Drawn only on a terminal.
pub fn bytes_bar(what: &'static str) -> ProgressBar {
    drawn(ProgressBar::new(0), BYTES, 0).with_prefix(what)
}

/// A bar for a download of `bytes`; a line instead if bars are not drawn.
pub fn download_bar(what: &str, bytes: u64, quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    if !log::draws_bars() {
        log::info(&format!("fetching {what} ({})", DecimalBytes(bytes)), json!({"file": what, "bytes": bytes}));
        return ProgressBar::hidden();
    }
    drawn(ProgressBar::new(bytes), DOWNLOAD, 0).with_message(what.to_string())
}

fn drawn(bar: ProgressBar, template: &str, done: u64) -> ProgressBar {
    let bar = log::shown(bar).with_style(style(template, Term::stderr().size().1, done));
    if log::draws_bars() {
        bar.enable_steady_tick(TICK);
    }
    bar
}

/// `columns`: of the terminal. `done`: items that another process did.
fn style(template: &str, columns: u16, done: u64) -> ProgressStyle {
    let width = columns.saturating_sub(WORDS).max(NARROWEST);
    let template = template.replace("WIDTH", &width.to_string());
    let style = ProgressStyle::with_template(&template).expect("the template is a constant");
    let reached = Arc::new(Mutex::new((done, Duration::ZERO)));
    style.progress_chars("━╸─").with_key("left", move |state: &ProgressState, text: &mut dyn Write| {
        let mut reached = reached.lock().unwrap_or_else(PoisonError::into_inner);
        if state.pos() > reached.0 {
            *reached = (state.pos(), state.elapsed());
        }
        let left = time_left(*reached, done, state.len().unwrap_or(0), state.elapsed());
        let _infallible = match left {
            // Unknown before the first item is done.
            None => write!(text, "-"),
            Some(left) => write!(text, "{:#}", HumanDuration(left)),
        };
    })
}

/// The time that is left when, after `elapsed`, the last item to be finished was the `reached.0`th of `len`, at `reached.1`.
fn time_left(reached: (u64, Duration), done: u64, len: u64, elapsed: Duration) -> Option<Duration> {
    let (position, at) = reached;
    let own = position.checked_sub(done).filter(|own| *own > 0)?;
    let left = at.mul_f64(len.saturating_sub(position) as f64 / own as f64);
    Some(left.saturating_sub(elapsed.saturating_sub(at)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::{ProgressDrawTarget, TermLike};
    use std::io::Result;
    use std::sync::{Arc, Mutex};

    /// A terminal of 60 columns that keeps what is written to it.
    #[derive(Clone, Debug, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl Screen {
        fn write(&self, text: &str) -> Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }

        /// What a bar draws because of `change`.
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
    fn the_time_left_is_judged_by_this_process_and_does_not_grow() {
        let seconds = Duration::from_secs;
        assert_eq!(time_left((90, Duration::ZERO), 90, 100, seconds(3)), None);
        // Two of the last ten steps in 20 seconds: 80 are left, and fewer as time goes by.
        assert_eq!(time_left((92, seconds(20)), 90, 100, seconds(20)), Some(seconds(80)));
        assert_eq!(time_left((92, seconds(20)), 90, 100, seconds(27)), Some(seconds(73)));
        assert_eq!(time_left((92, seconds(20)), 90, 100, seconds(900)), Some(Duration::ZERO));
    }

    #[test]
    fn bars_fit_a_narrow_terminal_and_tell_the_time_left() {
        let screen = Screen::default();
        let bar = |length, template| {
            let target = ProgressDrawTarget::term_like(Box::new(screen.clone()));
            ProgressBar::with_draw_target(Some(length), target).with_style(style(template, 60, 0))
        };
        let train = bar(40, BAR).with_prefix("train");
        let text = screen.after(|| train.tick());
        assert!(text.ends_with(" 0/40 eta -"), "{text}");
        train.set_position(39);
        let text = screen.after(|| train.set_message("loss 0.3000 penalty 1.000e-300 1234 tokens/s"));
        assert!(text.chars().count() <= 60 && text.contains(" 39/40 eta ") && text.contains("s loss 0.3000"), "{text}");
        let download = bar(17_000_000_000, DOWNLOAD);
        download.set_position(16_000_000_000);
        let text = screen.after(|| download.set_message("an-organisation/a-model/model-00001-of-00002.safetensors"));
        assert!(text.chars().count() <= 60 && text.contains("/17.00 GB ") && text.contains(" eta "), "{text}");
    }
}

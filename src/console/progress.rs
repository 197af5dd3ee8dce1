//! Bars: drawn on a terminal, for a person; hidden elsewhere (files, CI) and when quiet.

use super::log;
use indicatif::{DecimalBytes, HumanDuration, ProgressBar, ProgressState, ProgressStyle};
use serde_json::json;
use std::fmt::Write;
use std::time::Duration;

/// A bar says what matters first: a narrow terminal cuts the message short, and no bar takes two lines.
const BAR: &str = "{prefix} {bar:20} {pos}/{len} eta {left} {wide_msg}";
const DOWNLOAD: &str = "{bar:16} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} eta {left} {wide_msg}";
/// A bar whose items take long counts down in between.
const TICK: Duration = Duration::from_millis(500);

/// A bar for `len` items of work that is not training (`what`: "tokenising", say). Drawn only on a terminal.
pub fn progress_bar(len: usize, what: &'static str) -> ProgressBar {
    drawn(ProgressBar::new(len as u64), BAR).with_prefix(what)
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
        // Unknown before the first item is done.
        let _infallible = match state.pos() {
            0 => write!(text, "-"),
            _ => write!(text, "{:#}", HumanDuration(state.eta())),
        };
    })
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
        let text = screen.after(|| train.set_message("loss 0.3000 penalty 1.000e-300 1234 tokens/s"));
        assert!(text.chars().count() <= 60 && text.contains(" 39/40 eta ") && text.contains("s loss 0.3000"), "{text}");
        let download = bar(17_000_000_000, DOWNLOAD);
        download.set_position(16_000_000_000);
        let text = screen.after(|| download.set_message("an-organisation/a-model/model-00001-of-00002.safetensors"));
        assert!(text.chars().count() <= 60 && text.contains("/17.00 GB ") && text.contains(" eta "), "{text}");
    }
}

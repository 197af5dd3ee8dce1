//! Every line on stderr is made here: text for people, or one JSON object per line (`--log-format json`) for
//! collectors.
//!
//! A JSON line has `time` (UTC), `level` (`error`, `warn`, `info` or `debug`), `message`, the text that would otherwise
//! be shown, and `fields`, its numbers and names by key. A command's result goes to stdout and is not a log line.
//!
//! A command-line tool has a dozen such places and one writing thread; that costs less than a logging framework.

use super::utc_now;
use clap::ValueEnum;
use indicatif::{MultiProgress, ProgressBar};
use serde_json::{Map, Value, json};
use std::io::{IsTerminal, Write, stderr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, OnceLock};

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Warnings, errors, and what the user must know to continue.
    Quiet,
    #[default]
    Normal,
    /// Also each step, and what is being done.
    Verbose,
}

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Clone, Copy)]
struct Options {
    verbosity: Verbosity,
    format: LogFormat,
    /// Whether this process is the one of its job that logs.
    is_first: bool,
}

static OPTIONS: OnceLock<Options> = OnceLock::new();

/// Whether the current work is part of something larger that reports it.
static WITHIN: AtomicBool = AtomicBool::new(false);

/// The bars on the screen, which must make room for a line.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Chooses how the process logs. Call once, before anything is logged. `is_first`: whether this is the first process of
/// its job, or the only one; the others log only errors.
pub fn init(verbosity: Verbosity, format: LogFormat, is_first: bool) {
    // A second call would be a mistake; the first choice stands.
    let _first_wins = OPTIONS.set(Options { verbosity, format, is_first });
}

/// Does a part of something larger that reports it itself: what the part logs is shown only by a verbose command.
pub fn within<T>(part: impl FnOnce() -> T) -> T {
    WITHIN.store(true, Ordering::Relaxed);
    let done = part();
    WITHIN.store(false, Ordering::Relaxed);
    done
}

fn options() -> Options {
    let alone = Options { verbosity: Verbosity::Normal, format: LogFormat::Text, is_first: true };
    let options = OPTIONS.get().copied().unwrap_or(alone);
    let verbosity = match (WITHIN.load(Ordering::Relaxed), options.verbosity) {
        (true, Verbosity::Verbose) => Verbosity::Normal,
        (true, _) => Verbosity::Quiet,
        (false, verbosity) => verbosity,
    };
    Options { verbosity, ..options }
}

/// Whether each step and each decision is logged.
pub fn is_verbose() -> bool {
    options().verbosity == Verbosity::Verbose
}

/// Whether bars are drawn: only for a person at a terminal.
pub fn draws_bars() -> bool {
    let Options { verbosity, format, is_first } = options();
    verbosity != Verbosity::Quiet && format == LogFormat::Text && is_first && stderr().is_terminal()
}

/// A bar that makes room for lines; hidden where bars are not drawn.
pub fn shown(bar: ProgressBar) -> ProgressBar {
    if draws_bars() { BARS.add(bar) } else { ProgressBar::hidden() }
}

/// The options on the command line that make another process log like this one.
pub fn flags() -> Vec<&'static str> {
    let Options { verbosity, format, .. } = options();
    let mut flags = match verbosity {
        Verbosity::Quiet => vec!["--quiet"],
        Verbosity::Normal => vec![],
        Verbosity::Verbose => vec!["--verbose"],
    };
    if format == LogFormat::Json {
        flags.extend(["--log-format", "json"]);
    }
    flags
}

/// What goes wrong and ends the command.
pub fn error(message: &str, fields: Value) {
    emit("error", "error: ", message, fields);
}

/// What the user should know even when quiet.
pub fn warn(message: &str, fields: Value) {
    emit("warn", "warning: ", message, fields);
}

/// What the user needs to continue, even when quiet, without being a warning.
pub fn notice(message: &str, fields: Value) {
    emit("info", "", message, fields);
}

/// What happens.
pub fn info(message: &str, fields: Value) {
    if options().verbosity >= Verbosity::Normal {
        emit("info", "", message, fields);
    }
}

/// What happens in detail.
pub fn debug(message: &str, fields: Value) {
    if is_verbose() {
        emit("debug", "", message, fields);
    }
}

fn emit(level: &str, mark: &str, message: &str, fields: Value) {
    // One rank speaks for all; an error is logged by whichever rank has it.
    let Options { format, is_first, .. } = options();
    if level != "error" && !is_first {
        return;
    }
    let line = match format {
        LogFormat::Text => format!("{mark}{message}"),
        LogFormat::Json => json_line(level, message, fields),
    };
    // A closed stderr must not stop training.
    BARS.suspend(|| {
        let _closed = writeln!(stderr(), "{line}");
    });
}

fn json_line(level: &str, message: &str, fields: Value) -> String {
    let fields = if fields.is_null() { Value::Object(Map::new()) } else { fields };
    json!({"time": utc_now(), "level": level, "message": message, "fields": fields}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_line_is_one_line_with_level_message_and_fields() {
        let line = json_line("warn", "two\nlines \"quoted\"", json!({"step": 3, "loss": 0.1}));
        assert_eq!(line.lines().count(), 1);
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&value["level"], &value["message"]), (&json!("warn"), &json!("two\nlines \"quoted\"")));
        assert_eq!(value["fields"], json!({"step": 3, "loss": 0.1}));
        assert!(value["time"].as_str().is_some_and(|time| time.ends_with('Z')));
        let bare: Value = serde_json::from_str(&json_line("info", "", Value::Null)).unwrap();
        assert_eq!(bare["fields"], json!({}));
    }
}

//! SIGINT and SIGTERM: the first asks for an end where nothing is lost, after a step or an answer, or ends the process at
//! once if there is nothing to lose; the second ends it at once. What will happen is said when the signal comes.
//!
//! A thread waits for the signals: it may take locks and write, which a signal handler may not. Should it get stuck doing
//! so, a third signal ends the process from the handler.

use crate::ranks::Ranks;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::{flag, low_level};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// A signal that ends a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(i32);

impl Signal {
    pub fn name(self) -> &'static str {
        if self.0 == SIGINT { "SIGINT" } else { "SIGTERM" }
    }

    /// What a shell reports for a process ended by the signal.
    pub fn exit_code(self) -> u8 {
        128 + self.0 as u8
    }
}

/// The error of work ended by a signal.
#[derive(Debug)]
pub struct Interrupted(pub Signal);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stopped by {}", self.0.name())
    }
}

impl std::error::Error for Interrupted {}

/// Where the work can be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Anywhere: by the first signal.
    Anywhere,
    /// After what is under way, for which the work looks at [`StopRequest`] or calls [`check`].
    After {
        /// `this step`
        what: &'static str,
        /// How it ends by a second signal: `without a checkpoint`.
        otherwise: &'static str,
    },
}

/// What the process is at, as far as it concerns a signal.
#[derive(Clone, Debug)]
struct Now {
    place: Place,
    /// What is left after a sudden end; empty if there is nothing to say.
    left: String,
}

static NOW: Mutex<Now> = Mutex::new(Now { place: Place::Anywhere, left: String::new() });

fn now() -> MutexGuard<'static, Now> {
    NOW.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says where the work can be ended from here on.
pub fn at(place: Place) {
    now().place = place;
}

/// Says what is left if the process is ended at once: `the last checkpoint is DIR`.
pub fn leaves(what: &str) {
    now().left = what.to_string();
}

/// Until it is dropped, a part of the work may say where it is; afterwards what was said before it holds again.
pub struct Part(Now);

impl Part {
    pub fn begin() -> Self {
        Self(now().clone())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        *now() = self.0.clone();
    }
}

impl Now {
    /// What a signal brings about, `before` it another or none; and whether the process ends at once.
    fn told(&self, signal: Signal, before: Option<Signal>) -> (String, bool) {
        let left = if self.left.is_empty() { String::new() } else { format!("; {}", self.left) };
        match (self.place, before) {
            (Place::After { what, otherwise }, None) => {
                let again = if signal.0 == SIGINT { "press again to quit" } else { "a second signal quits" };
                (format!("stopping after {what}; {again} {otherwise}"), false)
            }
            (Place::After { otherwise, .. }, Some(_)) => (format!("quit {otherwise}{left}"), true),
            (Place::Anywhere, _) => (format!("stopped by {}{left}", signal.name()), true),
        }
    }
}

/// Listens until the process ends. Files are renamed into place when they are complete, so a sudden end breaks nothing.
#[derive(Clone)]
pub struct StopRequest {
    /// 0: none yet.
    signal: Arc<AtomicUsize>,
}

/// One for the process: a comparison trains many times, and a signal between two runs is meant for all of them.
static LISTENING: OnceLock<StopRequest> = OnceLock::new();

impl StopRequest {
    /// Listens from the first call on. `say`: how the user is told, with fields for a log.
    pub fn listen(say: fn(&str, Value)) -> Result<Self> {
        if let Some(listening) = LISTENING.get() {
            return Ok(listening.clone());
        }
        let made = Self::register(say).context("listening for signals")?;
        Ok(LISTENING.get_or_init(|| made).clone())
    }

    fn register(say: fn(&str, Value)) -> Result<Self> {
        let request = Self { signal: Arc::new(AtomicUsize::new(0)) };
        let (heard, ending) = (request.clone(), Arc::new(AtomicBool::new(false)));
        for number in [SIGINT, SIGTERM] {
            flag::register_conditional_shutdown(number, Signal(number).exit_code().into(), Arc::clone(&ending))?;
        }
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        let listen = move || {
            for signal in signals.forever().map(Signal) {
                let (text, ends) = now().told(signal, heard.received());
                ending.store(ends, Ordering::SeqCst);
                say(&text, json!({"signal": signal.name(), "ends": ends}));
                if ends {
                    low_level::exit(signal.exit_code().into());
                }
                // After it has been said: what the work says about its end comes later.
                heard.signal.store(signal.0 as usize, Ordering::SeqCst);
            }
        };
        std::thread::Builder::new().name("signals".to_string()).spawn(listen)?;
        Ok(request)
    }

    /// The signal received, if any.
    pub fn received(&self) -> Option<Signal> {
        match self.signal.load(Ordering::SeqCst) {
            0 => None,
            number => Some(Signal(number as i32)),
        }
    }

    /// As [`StopRequest::received`], for a signal to any rank. All ranks must call it together; all get the same
    /// answer.
    pub fn received_by_any(&self) -> Option<Signal> {
        let own = self.received().map_or(0, |signal| signal.0);
        match Ranks::here().max(own as u64) {
            0 => None,
            number => Some(Signal(number as i32)),
        }
    }
}

/// For work of which nothing is kept: ends it if the process listens and a signal has come. Among several ranks it goes
/// on: one that left would be waited for.
///
/// # Errors
/// [`Interrupted`].
pub fn check() -> Result<()> {
    match LISTENING.get().and_then(StopRequest::received) {
        Some(signal) if !Ranks::here().are_many() => Err(Interrupted(signal).into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signal_is_answered_by_what_it_brings_about() {
        let step = Place::After { what: "this step", otherwise: "without a checkpoint" };
        let now = |place, left: &str| Now { place, left: left.to_string() };
        let (int, term) = (Signal(SIGINT), Signal(SIGTERM));
        let kept = "the last checkpoint is runs/a/checkpoints/step-5";
        for (now, signal, before, text, ends) in [
            (now(step, kept), int, None, "stopping after this step; press again to quit without a checkpoint", false),
            (now(step, ""), term, None, "stopping after this step; a second signal quits without a checkpoint", false),
            (now(step, kept), term, Some(int), &format!("quit without a checkpoint; {kept}"), true),
            (now(Place::Anywhere, ""), int, None, "stopped by SIGINT", true),
            (now(Place::Anywhere, kept), term, None, &format!("stopped by SIGTERM; {kept}"), true),
        ] {
            assert_eq!(now.told(signal, before), (text.to_string(), ends));
        }
    }
}

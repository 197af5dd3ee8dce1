//! SIGINT and SIGTERM: the first asks a run to stop where nothing is lost, after a step or an answer; the second ends
//! the process at once.

use crate::ranks::Ranks;
use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

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

/// Listens until the process ends. Files are renamed into place when they are complete, so the second signal breaks
/// nothing.
#[derive(Clone)]
pub struct StopRequest {
    /// 0: none yet.
    signal: Arc<AtomicUsize>,
}

/// One for the process: a comparison trains many times, and a signal between two runs is meant for all of them.
static LISTENING: OnceLock<StopRequest> = OnceLock::new();

impl StopRequest {
    /// Listens from the first call on.
    pub fn listen() -> Result<Self> {
        if let Some(listening) = LISTENING.get() {
            return Ok(listening.clone());
        }
        let made = Self::register()?;
        Ok(LISTENING.get_or_init(|| made).clone())
    }

    fn register() -> Result<Self> {
        let (asked, signal) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        for number in [SIGINT, SIGTERM] {
            let exit_code = i32::from(Signal(number).exit_code());
            // In this order: the first signal finds the flag unset, and sets it.
            flag::register_conditional_shutdown(number, exit_code, Arc::clone(&asked))
                .and_then(|_| flag::register_usize(number, Arc::clone(&signal), number as usize))
                .and_then(|_| flag::register(number, Arc::clone(&asked)))
                .context("listening for signals")?;
        }
        Ok(Self { signal })
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

/// For work of which nothing is kept: ends it if the process listens and a signal has come.
///
/// # Errors
/// [`Interrupted`].
pub fn check() -> Result<()> {
    match LISTENING.get().and_then(StopRequest::received) {
        None => Ok(()),
        Some(signal) => Err(Interrupted(signal).into()),
    }
}

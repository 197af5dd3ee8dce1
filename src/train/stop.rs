//! SIGINT and SIGTERM: the first asks the run to stop after its step, the second ends the process at once.

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A signal that ends a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(i32);

impl Signal {
    pub fn name(self) -> &'static str {
        if self.0 == SIGINT { "SIGINT" } else { "SIGTERM" }
    }

    /// What a shell reports for a process that the signal ended.
    pub fn exit_code(self) -> u8 {
        128 + self.0 as u8
    }
}

/// Listens until the process ends. Files are renamed into place when they are whole, so the second signal breaks
/// nothing.
pub struct StopRequest {
    /// 0: none yet.
    signal: Arc<AtomicUsize>,
}

impl StopRequest {
    pub fn listen() -> Result<Self> {
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

    /// The signal that came, if one did.
    pub fn received(&self) -> Option<Signal> {
        match self.signal.load(Ordering::SeqCst) {
            0 => None,
            number => Some(Signal(number as i32)),
        }
    }
}

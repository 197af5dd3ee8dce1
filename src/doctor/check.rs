//! A check, and what it finds.

use super::subject::{Subject, Tolerance, Worst};
use anyhow::Result;
use serde::Serialize;

/// Something that must hold on a device.
#[derive(Clone, Copy)]
pub struct Check {
    pub name: &'static str,
    /// What is compared.
    pub what: &'static str,
    pub tolerance: Tolerance,
    pub run: fn(&Subject, &mut Worst) -> Result<()>,
    /// The kernel behind the operation, if the operation has another body that can take its place.
    pub kernel: Option<Kernel>,
}

/// A fused kernel that can be done without.
#[derive(Clone, Copy)]
pub struct Kernel {
    pub name: &'static str,
    /// From then on the operation's other body is used.
    pub switch_off: fn(),
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    pub name: &'static str,
    pub what: &'static str,
    pub ok: bool,
    /// The worst error, in units of the rounding of its type; none if it is not finite or nothing was computed.
    pub error_epsilons: Option<f64>,
    pub allowed_epsilons: f64,
    /// Where the worst error is: the output, its type, the sizes.
    pub at: String,
    /// Why nothing was computed.
    pub failure: Option<String>,
}

impl Check {
    pub const fn new(
        name: &'static str,
        what: &'static str,
        tolerance: Tolerance,
        run: fn(&Subject, &mut Worst) -> Result<()>,
    ) -> Self {
        Self { name, what, tolerance, run, kernel: None }
    }

    /// The same for an operation with kernels on GPUs.
    pub const fn by(self, name: &'static str, switch_off: fn()) -> Self {
        Self { kernel: Some(Kernel { name, switch_off }), ..self }
    }

    /// Runs the check.
    pub fn on(&self, subject: &Subject) -> Finding {
        Finding::of(self.name, self.what, self.tolerance, |worst| (self.run)(subject, worst))
    }
}

impl Finding {
    /// What `run` notes, compared with `tolerance`.
    pub fn of(
        name: &'static str,
        what: &'static str,
        tolerance: Tolerance,
        run: impl FnOnce(&mut Worst) -> Result<()>,
    ) -> Self {
        let mut worst = Worst::new(tolerance);
        let failure = run(&mut worst).err().map(|error| first_line(&error));
        let ok = failure.is_none() && worst.is_allowed();
        let error_epsilons = Some(worst.epsilons).filter(|error| failure.is_none() && error.is_finite());
        Self { name, what, ok, error_epsilons, allowed_epsilons: worst.allowed, at: worst.at, failure }
    }

    /// The fault in a few words.
    pub fn fault(&self) -> String {
        match (&self.failure, self.error_epsilons) {
            (Some(failure), _) => format!("{} ({failure})", self.name),
            (None, Some(error)) => {
                format!("{} ({}: off by {error:.3} epsilons, allowed {:.3})", self.name, self.at, self.allowed_epsilons)
            }
            (None, None) => format!("{} ({}: not finite)", self.name, self.at),
        }
    }
}

/// candle's errors end in a backtrace if `RUST_BACKTRACE` is set.
fn first_line(error: &anyhow::Error) -> String {
    format!("{error:#}").lines().next().unwrap_or_default().to_string()
}

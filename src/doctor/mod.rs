//! Whether what training rests on is computed rightly on a device: each operation against the same in f64 on the CPU.
//!
//! A [`Check`] is a value: a name, a tolerance, a function. [`examine`] runs all of them, for `asft doctor`;
//! [`before_training`] runs them at small sizes before each run that is not on the CPU, where a wrong number would
//! otherwise show after hours, if at all. References are textbook forms on candle's f64 tensors, with their gradients by
//! candle's tape: they share no line with what is checked. Inputs have odd sizes, start inside their memory, and lie
//! row by row or column by column.
//!
//! Three whole training steps are checked in `train`, which this room does not see.

mod attention;
mod basics;
mod check;
mod divergence;
mod operations;
mod products;
mod rates;
mod recurrent;
mod rows;
mod subject;

pub use check::{Check, Finding, Kernel};
pub use operations::Operations;
pub use rates::{Rates, measure};
pub use subject::{Depth, Subject, Tolerance, Worst};

use crate::console::log;
use crate::device;
use crate::invalid;
use anyhow::{Result, ensure};
use candle_core::{DType, Device};
use serde_json::json;
use std::ffi::OsStr;

/// Every check of an operation.
pub fn checks() -> Vec<Check> {
    [basics::CHECKS, rows::CHECKS, products::CHECKS, divergence::CHECKS, attention::CHECKS, recurrent::CHECKS].concat()
}

/// Runs all checks; `done` is called after each.
pub fn examine(subject: &Subject, done: impl Fn(&Check)) -> Vec<Finding> {
    let of = |check: &Check| {
        let finding = check.on(subject);
        done(check);
        finding
    };
    checks().iter().map(of).collect()
}

/// What a run needs to be right, at small sizes: about a second on a CPU, most of it for the references; a GPU also loads
/// its kernels meanwhile, which the run would do anyway. A kernel that is wrong is switched off, with a warning.
///
/// # Errors
/// The operations that are wrong and that nothing can take the place of, unless the user only wants to be warned: what the
/// checks allow was set without a GPU at hand, and a false alarm must not keep anyone from training.
pub fn before_training(device: &Device, dtype: DType) -> Result<()> {
    let only_warns = only_warns(std::env::var_os(SETTING).as_deref())?;
    let subject = Subject::new(device, dtype, Depth::Short);
    judged(rely_on(&subject, &checks()), only_warns)
}

/// The environment variable that may be "warn".
const SETTING: &str = "ASFT_DEVICE_CHECK";

fn only_warns(set: Option<&OsStr>) -> Result<bool> {
    match set.map(OsStr::to_str) {
        None => Ok(false),
        Some(Some("warn")) => Ok(true),
        Some(_) => Err(invalid!("{SETTING} is {:?}; it may be \"warn\", or unset", set.unwrap_or_default())),
    }
}

/// What a run makes of the checks.
fn judged(result: Result<()>, only_warns: bool) -> Result<()> {
    match result {
        Err(error) if only_warns => {
            log::warn(&format!("{error:#}; going on all the same, as {SETTING} is \"warn\""), json!({}));
            Ok(())
        }
        result => result,
    }
}

fn rely_on(subject: &Subject, checks: &[Check]) -> Result<()> {
    let (device, dtype) = (device::name(&subject.device), subject.dtype.as_str());
    let again = format!("`asft doctor --device {device} --dtype {dtype} --json`");
    let mut faults = vec![];
    for check in checks {
        let mut finding = check.on(subject);
        if let Some(kernel) = check.kernel.filter(|_| !finding.ok) {
            (kernel.switch_off)();
            let without = check.on(subject);
            if without.ok {
                let (name, fault) = (kernel.name, finding.fault());
                log::warn(
                    &format!(
                        "the GPU kernels of {name} are wrong on this device and are not used, which costs time, not \
                         accuracy: {fault}; please report what {again} prints, with the device and its driver"
                    ),
                    json!({"kernels": name, "finding": finding}),
                );
            }
            finding = without;
        }
        if !finding.ok {
            faults.push(finding.fault());
        }
    }
    ensure!(
        faults.is_empty(),
        "{device} computes wrongly in {dtype}, and training there would too: {}; {again} tells more: please report \
         what it prints, with the device and its driver, and train with another model.dtype or on another device \
         meanwhile; {SETTING}=warn goes on all the same",
        faults.join(", ")
    );
    Ok(())
}

#[cfg(test)]
mod tests;

//! Results in memory that was not zeroed first, which would take as long as writing them.

#![allow(unsafe_code, reason = "takes a vector to be filled once it has been")]

use std::mem::MaybeUninit;

/// Values to be written.
pub type Fresh = [MaybeUninit<f32>];

/// A vector of `length` values that `fill` writes.
///
/// # Safety
/// `fill` writes every value.
pub unsafe fn filled(length: usize, fill: impl FnOnce(&mut Fresh)) -> Vec<f32> {
    let mut values = Vec::with_capacity(length);
    fill(&mut values.spare_capacity_mut()[..length]);
    // SAFETY: promised by the caller.
    unsafe { values.set_len(length) };
    values
}

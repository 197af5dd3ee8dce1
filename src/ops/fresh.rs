//! Results in memory that was not zeroed first, which would take as long as writing them.

#![allow(unsafe_code, reason = "takes a vector to be filled once it has been")]

use std::mem::MaybeUninit;

/// Places that values are to be written to.
pub type Unwritten = [MaybeUninit<f32>];

/// Memory for a number of values, none of them written yet.
pub struct Fresh {
    values: Vec<f32>,
    length: usize,
}

impl Fresh {
    pub fn new(length: usize) -> Self {
        Self { values: Vec::with_capacity(length), length }
    }

    /// Where the first value goes; the others follow.
    pub fn data(&mut self) -> *mut f32 {
        self.values.as_mut_ptr()
    }

    /// The values.
    ///
    /// # Safety
    /// Every one has been written.
    pub unsafe fn filled(mut self) -> Vec<f32> {
        // SAFETY: promised by the caller; the capacity is at least that length.
        unsafe { self.values.set_len(self.length) };
        self.values
    }
}

/// A vector of `length` values that `fill` writes.
///
/// # Safety
/// `fill` writes every value.
pub unsafe fn filled(length: usize, fill: impl FnOnce(&mut Unwritten)) -> Vec<f32> {
    let mut fresh = Fresh::new(length);
    fill(&mut fresh.values.spare_capacity_mut()[..length]);
    // SAFETY: promised by the caller.
    unsafe { fresh.filled() }
}

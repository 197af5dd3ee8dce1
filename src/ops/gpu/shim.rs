//! The kernels on the CPU: the same files, compiled by the C++ compiler against `shim/shim.h`. For tests.

#![allow(unsafe_code, reason = "the interface of C++")]

use super::call::{Call, Language, suffix};
use anyhow::{Result, bail};
use rayon::prelude::*;
use std::cell::Cell;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};

unsafe extern "C" {
    fn asft_shim_launch(
        name: *const c_char,
        grid: *const c_uint,
        first: usize,
        end: usize,
        block: c_uint,
        shared: usize,
        arguments: *const *const c_void,
        count: c_uint,
        backwards: bool,
    ) -> c_int;
}

thread_local! {
    /// Whether the threads of a block take turns from the last to the first.
    pub static BACKWARDS: Cell<bool> = const { Cell::new(false) };
}

/// Threads of a kernel that are worth handing out.
const HANDED_OUT: usize = 1 << 12;

/// Runs a kernel, its blocks shared among the threads here: none depends on another.
///
/// # Safety
/// As of [`super::Launch::run`].
pub unsafe fn run(call: &Call, language: Language, slots: &[u64]) -> Result<()> {
    let ending = if language == Language::Metal { "_metal" } else { "" };
    let name = CString::new(format!("{}_{}{ending}", call.entry, suffix(call.dtype)?))?;
    let [x, y, z] = call.grid;
    let grid = [u32::try_from(x)?, u32::try_from(y)?, u32::try_from(z)?];
    let (block, count) = (u32::try_from(call.block)?, u32::try_from(slots.len())?);
    let (blocks, backwards) = (x * y * z, BACKWARDS.get());
    let few = blocks * call.block < HANDED_OUT;
    let parts = if few { 1 } else { blocks.min(4 * rayon::current_num_threads()) };
    let part = |i: usize| {
        let arguments: Vec<*const c_void> = slots.iter().map(|slot| (slot as *const u64).cast()).collect();
        let (first, end) = (i * blocks / parts, (i + 1) * blocks / parts);
        let (name, grid, arguments) = (name.as_ptr(), grid.as_ptr(), arguments.as_ptr());
        // SAFETY: a name with its NUL, three numbers, and `count` addresses of arguments; what the kernel accesses by them is
        // promised by the caller.
        unsafe { asft_shim_launch(name, grid, first, end, block, call.shared, arguments, count, backwards) }
    };
    let codes = if parts == 1 { Some(part(0)) } else { (0..parts).into_par_iter().map(part).max() };
    match codes {
        Some(0) => Ok(()),
        Some(1) => bail!("there is no such kernel"),
        _ => bail!("it does not take {count} arguments"),
    }
}

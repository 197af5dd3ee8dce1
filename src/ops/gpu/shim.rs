//! The kernels on the CPU: the same files, compiled by the C++ compiler against `shim/shim.h`. For tests.

#![allow(unsafe_code, reason = "the interface of C++")]

use super::call::{Call, Language, suffix};
use anyhow::{Result, bail};
use std::cell::Cell;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};

unsafe extern "C" {
    fn asft_shim_launch(
        name: *const c_char,
        grid: *const c_uint,
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

/// Runs a kernel on this thread.
///
/// # Safety
/// As of [`super::Launch::run`].
pub unsafe fn run(call: &Call, language: Language, slots: &[u64]) -> Result<()> {
    let ending = if language == Language::Metal { "_metal" } else { "" };
    let name = CString::new(format!("{}_{}{ending}", call.entry, suffix(call.dtype)?))?;
    let [x, y, z] = call.grid;
    let grid = [u32::try_from(x)?, u32::try_from(y)?, u32::try_from(z)?];
    let arguments: Vec<*const c_void> = slots.iter().map(|slot| (slot as *const u64).cast()).collect();
    let (block, count) = (u32::try_from(call.block)?, u32::try_from(slots.len())?);
    // SAFETY: a name with its NUL, three numbers, and `count` addresses of arguments; what the kernel accesses by them is
    // promised by the caller.
    let code = unsafe {
        asft_shim_launch(name.as_ptr(), grid.as_ptr(), block, call.shared, arguments.as_ptr(), count, BACKWARDS.get())
    };
    match code {
        0 => Ok(()),
        1 => bail!("there is no such kernel"),
        _ => bail!("it does not take {count} arguments"),
    }
}

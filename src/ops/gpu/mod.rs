//! Kernels for GPUs, in CUDA C beside this file: which there are, whether they serve, and how one is launched.
//!
//! A build with the feature `cuda` embeds them as PTX, which the driver translates for its GPU. The tests' feature `shim`
//! compiles the same files for the CPU (`shim/`), where `ASFT_OPS=shim` sends whole training steps through them. What a
//! launch needs is said once, in the operation's own file: its entry, its grid, and its arguments with what is read and what
//! is written.
//!
//! An operation falls back to its generic body wherever its kernels do not serve: on another device, for strided views and
//! other types, or once they are switched off, because they could not be loaded or were found to be wrong.

pub(super) mod address;
mod call;
#[cfg(feature = "cuda")]
mod cuda;
mod launch;
pub(super) mod products;
mod registry;
#[cfg(feature = "shim")]
mod shim;
#[cfg(all(test, feature = "shim"))]
pub(super) mod tests;

pub use launch::{Arg, Launch, PACK, unwritten};
pub use registry::*;

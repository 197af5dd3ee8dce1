//! Kernels for GPUs, in CUDA C beside this file: which there are, whether they serve, and how one is launched.
//!
//! A build with the feature `cuda` embeds them as PTX, which the driver translates for its GPU. Those of rows and of values are
//! written in words that Metal's compiler takes too (`cuda.cuh`, `metal.h`); a build with `metal` embeds their texts. The tests'
//! feature `shim` compiles both for the CPU (`shim/`), where `ASFT_OPS=shim` and `ASFT_OPS=shim-metal` send whole training steps
//! through them. What a
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
#[cfg(feature = "metal")]
mod metal;
pub(super) mod products;
mod registry;
#[cfg(feature = "shim")]
mod shim;
mod sources;
mod tables;
#[cfg(all(test, feature = "shim"))]
pub(super) mod tests;

pub use call::Arg;
pub use launch::{Launch, PACK, unwritten};
pub use registry::*;
pub use tables::{chunks, kept};

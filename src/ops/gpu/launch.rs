//! How a kernel is launched: its grid and its arguments, said once for either back end.

#![allow(unsafe_code, reason = "kernels read and write memory by their arguments")]

use super::address;
use super::call::Call;
use super::registry::Kernels;
use crate::ops::traffic;
use anyhow::{Context, Result};
use candle_core::{DType, Device, Shape, Tensor};

/// Values that a thread has at once (common.cuh).
pub const PACK: usize = 8;
const WARP: usize = 32;
/// Threads of a block whose threads do not work together.
const BLOCK: usize = 256;
/// Most threads of a block that has a row: across_block in common.cuh.
const MAX_BLOCK: usize = WARP * WARP;

/// An argument of a kernel. Tensors are passed as addresses; the kernel must have their types.
#[derive(Clone, Copy)]
pub enum Arg<'a> {
    /// A contiguous tensor that is read.
    In(&'a Tensor),
    /// One that is written.
    Out(&'a Tensor),
    /// One that is read and written.
    Both(&'a Tensor),
    /// A null pointer, or a tensor that is read.
    Maybe(Option<&'a Tensor>),
    /// Memory of another form than a tensor's, that is read.
    Raw { address: u64, bytes: usize },
    /// A `u32`.
    Small(usize),
    /// A `u64`.
    Large(u64),
    /// An `f32`.
    Float(f64),
}

/// How a kernel is launched.
pub struct Launch(Call);

impl Launch {
    /// `grid` blocks of `block` threads, with `shared` bytes of dynamic shared memory.
    pub fn new(
        kernels: &'static Kernels,
        entry: impl Into<String>,
        dtype: DType,
        grid: [usize; 3],
        (block, shared): (usize, usize),
    ) -> Self {
        Self(Call { source: kernels.source, entry: entry.into(), dtype, grid, block, shared })
    }

    /// A thread for every [`PACK`] of n values.
    pub fn map(kernels: &'static Kernels, entry: &str, dtype: DType, n: usize) -> Self {
        Self::threads(kernels, entry, dtype, n.div_ceil(PACK))
    }

    /// At least `threads` threads.
    pub fn threads(kernels: &'static Kernels, entry: &str, dtype: DType, threads: usize) -> Self {
        Self::new(kernels, entry, dtype, [threads.div_ceil(BLOCK), 1, 1], (BLOCK, 0))
    }

    /// The same for each of `parts` parts.
    pub fn in_parts(mut self, parts: usize) -> Self {
        self.0.grid[1] = parts;
        self
    }

    /// A block for each of n rows of d values.
    pub fn rows(kernels: &'static Kernels, entry: &str, dtype: DType, (n, d): (usize, usize)) -> Self {
        let block = d.div_ceil(PACK).next_multiple_of(WARP).clamp(WARP, MAX_BLOCK);
        Self::new(kernels, entry, dtype, [n, 1, 1], (block, 0))
    }

    /// Runs the kernel after what was launched before; on a GPU, does not wait for it. Does nothing if there are no blocks.
    ///
    /// # Errors
    /// No tensor among the arguments, one that is not contiguous, or a number beyond its type; a launch that fails.
    ///
    /// # Safety
    /// Each tensor has the type and at least the size that the kernel accesses by its other arguments, and memory of its
    /// own if it is written.
    pub unsafe fn run(self, arguments: &[Arg<'_>]) -> Result<()> {
        if self.0.grid.contains(&0) {
            return Ok(());
        }
        let tensor = |argument: &Arg<'_>| match *argument {
            Arg::In(x) | Arg::Out(x) | Arg::Both(x) => Some(x.device().clone()),
            _ => None,
        };
        let device = arguments.iter().find_map(tensor).context("a launch without tensors")?;
        for argument in arguments {
            match *argument {
                Arg::In(x) | Arg::Maybe(Some(x)) => traffic::moved(&[x], &[]),
                Arg::Out(x) => traffic::moved(&[], &[x]),
                Arg::Both(x) => traffic::moved(&[x], &[x]),
                Arg::Raw { bytes, .. } => traffic::read(bytes),
                _ => {}
            }
        }
        traffic::launch(&[], &[]);
        let slots = arguments.iter().map(Self::slot).collect::<Result<Vec<u64>>>()?;
        let run = || match &device {
            #[cfg(feature = "shim")]
            // SAFETY: promised by the caller.
            Device::Cpu => unsafe { super::shim::run(&self.0, &slots) },
            #[cfg(feature = "cuda")]
            // SAFETY: promised by the caller.
            Device::Cuda(device) => unsafe { super::cuda::run(device, &self.0, &slots) },
            _ => anyhow::bail!("this build has no kernels for {device:?}, and {} arguments", slots.len()),
        };
        run().with_context(|| format!("the kernel {} in {:?}", self.0.entry, self.0.dtype))
    }

    /// An argument in the eight bytes that the kernel finds it in: smaller ones are in the first, as on every GPU and on
    /// little-endian CPUs.
    fn slot(argument: &Arg<'_>) -> Result<u64> {
        Ok(match *argument {
            Arg::In(x) => address::of(x)?,
            Arg::Out(x) | Arg::Both(x) => address::to_write(x)?,
            Arg::Maybe(x) => x.map_or(Ok(0), address::of)?,
            Arg::Raw { address, .. } => address,
            Arg::Small(number) => u32::try_from(number)?.into(),
            Arg::Large(number) => number,
            Arg::Float(number) => (number as f32).to_bits().into(),
        })
    }
}

/// A tensor for a kernel to write, its values anything until then.
///
/// # Safety
/// A kernel writes every value before any is read.
pub unsafe fn unwritten(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    // SAFETY: promised by the caller.
    Ok(unsafe { Tensor::empty(shape, dtype, device) }?)
}

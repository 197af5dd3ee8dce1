//! How a kernel is launched: its grid and its arguments, said once for either back end.

#![allow(unsafe_code, reason = "kernels read and write memory by their arguments")]

#[cfg(any(feature = "cuda", feature = "shim"))]
use super::call::Language;
#[cfg(any(feature = "cuda", feature = "metal", feature = "shim"))]
use super::call::Slot;
use super::call::{Arg, Call};
use super::registry::{self, Kernels};
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
            Arg::In(x) | Arg::Out(x) | Arg::Both(x) => Some(x.clone()),
            _ => None,
        };
        let any = arguments.iter().find_map(tensor).context("a launch without tensors")?;
        for argument in arguments {
            match *argument {
                Arg::In(x) | Arg::Maybe(Some(x)) => traffic::moved(&[x], &[]),
                Arg::Out(x) | Arg::MaybeOut(Some(x)) => traffic::moved(&[], &[x]),
                Arg::Both(x) => traffic::moved(&[x], &[x]),
                Arg::Raw { bytes, .. } => traffic::read(bytes),
                _ => {}
            }
        }
        traffic::launch(&[], &[]);
        let language = registry::language(any.device()).context("this build has no kernels for the device");
        let run = |language| match any.device() {
            #[cfg(feature = "metal")]
            // SAFETY: promised by the caller.
            Device::Metal(device) => unsafe {
                super::metal::run(device, &self.0, &Slot::all(arguments, language)?, &any)
            },
            #[cfg(feature = "shim")]
            // SAFETY: promised by the caller.
            Device::Cpu => unsafe { super::shim::run(&self.0, language, &words(arguments, language)?) },
            #[cfg(feature = "cuda")]
            // SAFETY: promised by the caller.
            Device::Cuda(device) => unsafe { super::cuda::run(device, &self.0, &words(arguments, language)?) },
            device => anyhow::bail!("this build has no kernels for {device:?}, which are {language:?}"),
        };
        language.and_then(run).with_context(|| format!("the kernel {} in {:?}", self.0.entry, self.0.dtype))
    }
}

/// The arguments in eight bytes each, as the kernel finds them: smaller ones are in the first, as on every GPU and on
/// little-endian CPUs.
#[cfg(any(feature = "cuda", feature = "shim"))]
fn words(arguments: &[Arg<'_>], language: Language) -> Result<Vec<u64>> {
    let word = |slot: &Slot<'_>| {
        Ok(match *slot {
            Slot::Read(x) => super::address::of(x)?,
            Slot::Written(x) => super::address::to_write(x)?,
            Slot::Missing => 0,
            Slot::Address(address) | Slot::Large(address) => address,
            Slot::Small(number) => number.into(),
            Slot::Float(number) => number.to_bits().into(),
        })
    };
    Slot::all(arguments, language)?.iter().map(word).collect()
}

/// A tensor for a kernel to write, its values anything until then.
///
/// # Safety
/// A kernel writes every value before any is read.
pub unsafe fn unwritten(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    // SAFETY: promised by the caller.
    Ok(unsafe { Tensor::empty(shape, dtype, device) }?)
}

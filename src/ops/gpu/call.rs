//! What is called, for either back end.

use anyhow::{Result, bail};
use candle_core::{DType, Tensor};

/// What a device's kernels are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    Cuda,
    Metal,
}

/// One launch of a kernel, but for its arguments.
#[cfg_attr(
    not(any(feature = "cuda", feature = "metal")),
    allow(dead_code, reason = "builds without kernels call none")
)]
pub struct Call {
    /// The file that the kernel is in, without `.cu`.
    pub source: &'static str,
    pub entry: String,
    /// The type of activations.
    pub dtype: DType,
    /// Blocks in each direction.
    pub grid: [usize; 3],
    /// Threads of a block.
    pub block: usize,
    /// Bytes of shared memory that the kernel asks for at its launch.
    pub shared: usize,
}

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
    /// A null pointer, or a tensor that is written.
    MaybeOut(Option<&'a Tensor>),
    /// Memory of another form than a tensor's, that is read.
    Raw { address: u64, bytes: usize },
    /// A `u32`.
    Small(usize),
    /// A `u64`.
    Large(u64),
    /// An `f32`.
    Float(f64),
}

/// The suffix that a type has in the names of files and kernels.
#[cfg_attr(not(any(feature = "cuda", feature = "metal", feature = "shim")), allow(dead_code, reason = "as above"))]
pub fn suffix(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::BF16 => Ok("bf16"),
        DType::F16 => Ok("f16"),
        other => bail!("no kernels for {other:?}"),
    }
}

//! What is called, for either back end.

use anyhow::{Context, Result, bail};
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

/// One place among a kernel's arguments, as either back end fills it.
#[derive(Clone, Copy)]
#[cfg_attr(not(any(feature = "cuda", feature = "metal", feature = "shim")), allow(dead_code, reason = "as above"))]
pub enum Slot<'a> {
    Read(&'a Tensor),
    Written(&'a Tensor),
    /// The place of a tensor that is not there.
    Missing,
    Address(u64),
    Small(u32),
    Large(u64),
    Float(f32),
}

impl<'a> Slot<'a> {
    /// The places that arguments take, in the kernel's order. In Metal's language, where a buffer is always bound, a number
    /// follows what may be missing and says whether it is there.
    ///
    /// # Errors
    /// A number beyond its type.
    #[cfg_attr(not(any(feature = "cuda", feature = "metal", feature = "shim")), allow(dead_code, reason = "as above"))]
    pub fn all(arguments: &[Arg<'a>], language: Language) -> Result<Vec<Self>> {
        let mut slots = vec![];
        for argument in arguments {
            slots.push(match *argument {
                Arg::In(x) | Arg::Maybe(Some(x)) => Self::Read(x),
                Arg::Out(x) | Arg::Both(x) | Arg::MaybeOut(Some(x)) => Self::Written(x),
                Arg::Maybe(None) | Arg::MaybeOut(None) => Self::Missing,
                Arg::Raw { address, .. } => Self::Address(address),
                Arg::Small(number) => Self::Small(u32::try_from(number).context("an argument")?),
                Arg::Large(number) => Self::Large(number),
                Arg::Float(number) => Self::Float(number as f32),
            });
            if let (Arg::Maybe(x) | Arg::MaybeOut(x), Language::Metal) = (argument, language) {
                slots.push(Self::Small(x.is_some().into()));
            }
        }
        Ok(slots)
    }
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

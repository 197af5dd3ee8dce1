//! What is called, for either back end.

use anyhow::{Result, bail};
use candle_core::DType;

/// One launch of a kernel, but for its arguments.
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "builds without kernels call none"))]
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

/// The suffix that a type has in the names of files and kernels.
#[cfg_attr(not(any(feature = "cuda", feature = "shim")), allow(dead_code, reason = "as above"))]
pub fn suffix(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::BF16 => Ok("bf16"),
        DType::F16 => Ok("f16"),
        other => bail!("no kernels for {other:?}"),
    }
}

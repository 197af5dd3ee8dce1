//! Primitives as pairs of plain functions: `forward(...) -> (y, saved)` and `backward(saved, dy) -> (dx, ...)`.
//!
//! Each has one generic body in candle tensor ops, for any device, and, where it pays, a fused multi-threaded CPU
//! kernel behind the same function; some have GPU kernels too (gpu/). `ASFT_OPS=generic` turns all kernels off, so that the
//! code any device runs can be tested without one, and `ASFT_OPS=shim` or `shim-metal`, in builds for tests, runs those of NVIDIA's
//! or Apple's GPUs on the CPU. Activations are matrices of N rows, one for each token of the batch; sequences follow one another
//! without padding. Kernels split their work by rows or by heads, never by a sum, so that results do not depend on the
//! number of threads.
//!
//! Kernels compute in f32. Tensors of bf16 or f16 are widened as they are read and rounded once as they are written,
//! which is what a GPU's matrix units do; results have the type of the activations that came in.

pub mod activation;
pub mod allocator;
pub mod attention;
pub mod causal_conv;
pub mod cross_entropy;
pub mod delta_rule;
pub mod divergence;
pub mod dropout;
pub mod gated_mlp;
pub mod gpu;
pub mod linear;
pub mod low_rank;
pub mod machine;
pub mod parameters;
pub mod rms_norm;
pub mod rope;
pub mod routing;
pub mod scalar;
pub mod softcap;
pub mod sum;
pub mod threads;
pub mod traffic;
pub mod weight;

mod dot;
mod fast_math;
mod fresh;
mod gemm;
mod matrix;
#[cfg(test)]
pub(crate) mod testing;
mod thin;
mod widen;

use crate::invalid;
use anyhow::{Context, Result};
use candle_core::{DType, Layout, Storage, Tensor};
use std::ops::Deref;
use std::sync::OnceLock;
use widen::Values;

/// The bodies that compute on the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bodies {
    /// The CPU's kernels.
    Kernels,
    /// Those for any device.
    Generic,
    /// The GPU's kernels, run by the shim.
    Shim,
    /// The same as Metal has them.
    MetalShim,
}

/// What the environment variable `ASFT_OPS` asks for.
fn bodies() -> Bodies {
    #[cfg(all(test, feature = "shim"))]
    if let Some(chosen) = gpu::tests::CHOSEN.get() {
        return chosen;
    }
    static BODIES: OnceLock<Bodies> = OnceLock::new();
    *BODIES.get_or_init(|| match std::env::var("ASFT_OPS").as_deref() {
        Ok("generic") => Bodies::Generic,
        Ok("shim") => Bodies::Shim,
        Ok("shim-metal") => Bodies::MetalShim,
        _ => Bodies::Kernels,
    })
}

/// Checks the environment variable `ASFT_OPS`.
///
/// # Errors
/// A value that it does not have in this build.
pub fn check_environment() -> Result<()> {
    let Some(value) = std::env::var_os("ASFT_OPS") else { return Ok(()) };
    match value.to_str() {
        Some("" | "generic") => Ok(()),
        Some("shim" | "shim-metal") if cfg!(feature = "shim") => Ok(()),
        Some(shim @ ("shim" | "shim-metal")) => Err(invalid!(
            "ASFT_OPS is {shim:?}, but this build has no shim; build it with --features shim, or unset ASFT_OPS"
        )),
        _ => Err(invalid!("ASFT_OPS is {value:?}; it may be \"generic\", or unset")),
    }
}

/// Whether the CPU's kernels are in use.
fn has_cpu_kernels() -> bool {
    bodies() == Bodies::Kernels
}

/// Whether the fused CPU kernels may serve these tensors.
fn fused(tensors: &[&Tensor]) -> bool {
    has_cpu_kernels()
        && tensors.iter().all(|t| {
            t.device().is_cpu() && matches!(t.dtype(), DType::F32 | DType::BF16 | DType::F16) && t.is_contiguous()
        })
}

/// Runs `body` on the values of contiguous CPU tensors, widened to f32 where they are not.
pub fn with_f32<const K: usize, R>(tensors: [&Tensor; K], body: impl FnOnce([&[f32]; K]) -> R) -> Result<R> {
    let guards = tensors.map(Tensor::storage_and_layout);
    let mut wide: [Vec<f32>; K] = std::array::from_fn(|_| vec![]);
    for (wide, guard) in wide.iter_mut().zip(&guards) {
        match values(guard)? {
            Values::F32(_) => {}
            half => *wide = half.widened(),
        }
    }
    let mut slices = [&[][..]; K];
    for ((slice, wide), guard) in slices.iter_mut().zip(&wide).zip(&guards) {
        *slice = match values(guard)? {
            Values::F32(values) => values,
            _ => wide,
        };
    }
    Ok(body(slices))
}

/// The values behind a contiguous CPU tensor.
fn values<'a>((storage, layout): &'a (impl Deref<Target = Storage>, &Layout)) -> Result<Values<'a>> {
    let range = layout.contiguous_offsets();
    let (Storage::Cpu(storage), Some(range)) = (&**storage, range) else {
        anyhow::bail!("a fused kernel was given a tensor that is not contiguous on the CPU");
    };
    Values::of(storage, range).context("a fused kernel was given integers")
}

/// A copy of `x` in memory of its own, outside of any graph. `Tensor::copy` would not do: on Metal it is another handle
/// of the same buffer (candle 0.11.1), which changes with it.
pub fn owned(x: &Tensor) -> Result<Tensor> {
    Ok(x.force_contiguous()?.detach())
}

/// x in another type; x itself if it has it.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    let y = x.to_dtype(dtype)?;
    Ok(if x.dtype() == dtype { y } else { traffic::counted(y, &[x]) })
}

/// A factor as a type has it.
pub fn rounded(factor: f64, dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => half::bf16::from_f64(factor).to_f64(),
        DType::F16 => half::f16::from_f64(factor).to_f64(),
        _ => factor,
    }
}

/// A kernel's result as a tensor of `like`'s type.
fn output(values: Vec<f32>, shape: impl Into<candle_core::Shape>, like: &Tensor) -> Result<Tensor> {
    widen::tensor(values, shape.into(), like.dtype())
}

#[cfg(test)]
mod tests;

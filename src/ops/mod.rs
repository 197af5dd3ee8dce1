//! Primitives as pairs of plain functions: `forward(...) -> (y, saved)` and `backward(saved, dy) -> (dx, ...)`.
//!
//! Each has one generic body in candle tensor ops, for any device, and where it pays a fused multi-threaded f32 CPU
//! kernel behind the same function. `ASFT_OPS=generic` turns the kernels off, so that the code a GPU runs can be
//! tested without one. Activations are matrices of N = batch × sequence rows. Kernels split their work by rows or by
//! heads, never by a sum, so that results do not depend on the number of threads.

pub mod attention;
pub mod cross_entropy;
pub mod dropout;
pub mod gated_mlp;
pub mod linear;
pub mod rms_norm;
pub mod rope;
pub mod sum;

mod fast_math;
mod gemm;
#[cfg(test)]
pub(crate) mod testing;

use anyhow::{Result, bail};
use candle_core::{CpuStorage, DType, Storage, Tensor};
use std::sync::OnceLock;

/// Whether the fused CPU kernels may serve these tensors.
fn fused(tensors: &[&Tensor]) -> bool {
    static GENERIC: OnceLock<bool> = OnceLock::new();
    !*GENERIC.get_or_init(|| std::env::var("ASFT_OPS").is_ok_and(|value| value == "generic"))
        && tensors.iter().all(|t| t.device().is_cpu() && t.dtype() == DType::F32 && t.is_contiguous())
}

/// Runs `body` on the values of contiguous f32 CPU tensors.
fn with_f32<const K: usize, R>(tensors: [&Tensor; K], body: impl FnOnce([&[f32]; K]) -> R) -> Result<R> {
    let guards = tensors.map(|tensor| tensor.storage_and_layout());
    let mut slices = [&[][..]; K];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        *slice = match (&**storage, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => &values[start..end],
            _ => bail!("a fused kernel was given a tensor that is not contiguous f32 on the CPU"),
        };
    }
    Ok(body(slices))
}

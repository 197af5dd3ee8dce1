//! How fast a device is, measured on the spot: copies and matrix products.

use crate::device;
use crate::memory::Capacity;
use crate::ops::machine::{best, copy_rate};
use crate::ops::{linear, owned};
use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use serde::Serialize;

/// Side of the square matrices that are multiplied, and bytes that are copied.
const SIDE_ON_CPU: usize = 1024;
const SIDE: usize = 4096;
const COPY_BYTES: usize = 1 << 28;

/// Memory in bytes; rates per second, the best of several runs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rates {
    /// If the device says.
    pub memory: Option<Capacity>,
    /// Bytes read and written.
    pub copy_bytes_per_second: f64,
    /// Floating-point operations of a square product in the compute type.
    pub gemm_flops_per_second: f64,
}

/// Takes about a second.
pub fn measure(device: &Device, dtype: DType) -> Result<Rates> {
    let memory = device::memory(device);
    let copy_bytes_per_second = if device.is_cpu() { copy_rate() } else { copies(device)? };
    let side = if device.is_cpu() { SIDE_ON_CPU } else { SIDE };
    let x = Tensor::ones((side, side), DType::F32, device)?.to_dtype(dtype)?;
    let seconds = timed(device, || linear::forward(&x, &x, None))?;
    Ok(Rates { memory, copy_bytes_per_second, gemm_flops_per_second: 2.0 * (side as f64).powi(3) / seconds })
}

fn copies(device: &Device) -> Result<f64> {
    let x = Tensor::ones(COPY_BYTES / size_of::<f32>(), DType::F32, device)?;
    Ok(2.0 * COPY_BYTES as f64 / timed(device, || owned(&x))?)
}

/// The shortest time in seconds, to its end on the device.
fn timed(device: &Device, run: impl Fn() -> Result<Tensor>) -> Result<f64> {
    let mut outcome = Ok(());
    let seconds = best(|| {
        if outcome.is_ok() {
            outcome = run().and_then(|_| Ok(device.synchronize()?));
        }
    });
    outcome.map(|()| seconds)
}

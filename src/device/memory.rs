//! How much memory a device has, and how much of it is free.

use crate::memory::Capacity;
use candle_core::{CudaDevice, Device, MetalDevice};

/// The memory of a device; `None` if it does not say.
pub fn memory(device: &Device) -> Option<Capacity> {
    match device {
        Device::Cpu => Capacity::read(),
        Device::Cuda(device) => of_cuda(device),
        Device::Metal(device) => of_metal(device),
    }
}

#[cfg(feature = "cuda")]
fn of_cuda(device: &CudaDevice) -> Option<Capacity> {
    let (available, limit) = device.cuda_stream().context().mem_get_info().ok()?;
    Some(Capacity { available, limit })
}

#[cfg(not(feature = "cuda"))]
fn of_cuda(_: &CudaDevice) -> Option<Capacity> {
    None
}

/// Metal shares the machine's memory; what it recommends to stay below is its limit here.
#[cfg(feature = "metal")]
fn of_metal(device: &MetalDevice) -> Option<Capacity> {
    let limit = device.metal_device().recommended_max_working_set_size();
    Some(Capacity { available: limit.saturating_sub(device.metal_device().current_allocated_size()), limit })
}

#[cfg(not(feature = "metal"))]
fn of_metal(_: &MetalDevice) -> Option<Capacity> {
    None
}

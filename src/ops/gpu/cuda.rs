//! The kernels on NVIDIA GPUs: PTX that build.rs embeds, loaded through candle's own device.

#![allow(unsafe_code, reason = "launches on a GPU")]

use super::call::{Call, suffix};
use anyhow::{Context, Result};
use candle_core::DType;
use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute_enum;
use candle_core::cuda_backend::cudarc::driver::{CudaFunction, LaunchConfig, PushKernelArg};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// The PTX of every source and type, by `<source>_<type>`.
static PTX: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/gpu_ptx.rs"));

/// Bytes of shared memory that a kernel may have without asking.
const UNASKED_SHARED: usize = 48 << 10;

/// What became of loading each kernel.
type Loaded = HashMap<(&'static str, DType), Result<(), String>>;

/// Loads a source's kernels for one type and looks for `entry`, once per process.
///
/// # Errors
/// What the driver says: a GPU that is older than the kernels, or a driver that is older than the PTX.
pub fn load(device: &CudaDevice, (source, entry): (&str, &'static str), dtype: DType) -> Result<()> {
    static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let result = loaded.get_or_insert_default().entry((entry, dtype)).or_insert_with(|| {
        let found = function(device, source, dtype, entry);
        found.map(|_| ()).map_err(|error| format!("{error:#}"))
    });
    result.clone().map_err(anyhow::Error::msg)
}

fn function(device: &CudaDevice, source: &str, dtype: DType, entry: &str) -> Result<CudaFunction> {
    let name = format!("{source}_{}", suffix(dtype)?);
    let (_, ptx) = PTX.iter().find(|(of, _)| *of == name).with_context(|| format!("no PTX of {name}"))?;
    Ok(device.get_or_load_custom_func(entry, &format!("asft_{name}"), ptx)?.into_cuda_function())
}

/// Launches a kernel on the device's stream.
///
/// # Safety
/// As of [`super::Launch::run`].
pub unsafe fn run(device: &CudaDevice, call: &Call, slots: &[u64]) -> Result<()> {
    let function = function(device, call.source, call.dtype, &call.entry)?;
    if call.shared > UNASKED_SHARED {
        let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, i32::try_from(call.shared)?)?;
    }
    let [x, y, z] = call.grid;
    let config = LaunchConfig {
        grid_dim: (u32::try_from(x)?, u32::try_from(y)?, u32::try_from(z)?),
        block_dim: (u32::try_from(call.block)?, 1, 1),
        shared_mem_bytes: u32::try_from(call.shared)?,
    };
    let stream = device.cuda_stream();
    let mut builder = stream.launch_builder(&function);
    for slot in slots {
        builder.arg(slot);
    }
    // SAFETY: the arguments are those of the kernel; what it accesses by them is promised by the caller.
    unsafe { builder.launch(config) }?;
    Ok(())
}

//! Devices: what this build can compute on, and opening one without a panic.
//!
//! CUDA and Metal are cargo features. A build with CUDA also runs on a machine without a GPU: the driver is loaded only
//! when a GPU is asked for, see `driver`.

#[cfg(all(feature = "cuda", target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod driver;
mod memory;

pub use memory::memory;

use crate::console::log;
use crate::invalid;
use crate::version::VERSION;
use anyhow::{Result, anyhow, bail};
use candle_core::{DType, Device, Tensor};
use serde_json::json;
use std::fmt;

/// A kind of accelerator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    Cuda,
    Metal,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cuda => "cuda",
            Self::Metal => "metal",
        })
    }
}

impl Accelerator {
    /// What a device is; none is the CPU.
    pub fn of(device: &Device) -> Option<Self> {
        match device {
            Device::Cpu => None,
            Device::Cuda(_) => Some(Self::Cuda),
            Device::Metal(_) => Some(Self::Metal),
        }
    }

    /// What this build supports, in order of preference.
    fn built() -> impl Iterator<Item = Self> {
        [Self::Cuda, Self::Metal].into_iter().filter(|accelerator| accelerator.is_built())
    }

    fn is_built(self) -> bool {
        match self {
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Metal => cfg!(feature = "metal"),
        }
    }

    fn try_open(self, index: usize) -> Result<Device> {
        let device = match self {
            Self::Cuda => open_cuda(index)?,
            Self::Metal => open_metal(index)?,
        };
        // Kernels are loaded when they are first used: one that the GPU cannot run should be known now.
        let probe = Tensor::ones(2, DType::F32, &device).and_then(|ones| (ones + 1.0)?.to_vec1::<f32>());
        match probe {
            Ok(values) if values == [2.0, 2.0] => Ok(device),
            Ok(values) => bail!("1 + 1 came out as {values:?} there"),
            Err(error) => Err(anyhow!(
                "its kernels do not run on this GPU: {}; they are compiled for the GPU of the machine that built \
                 asft, or for CUDA_COMPUTE_CAP",
                first_line(&error)
            )),
        }
    }

    /// Opens the device of this kind with the number `index`.
    ///
    /// # Errors
    /// A build or a machine without it; a driver or kernels that do not work.
    pub fn open(self, index: usize) -> Result<Device> {
        if !self.is_built() {
            return Err(invalid!(
                "device \"{self}\" is not in this asft, which is {}; rebuild it with `cargo build --release --features \
                 {self}` (docs/gpu.md), or set model.device or --device to \"auto\" or \"cpu\"",
                *VERSION
            ));
        }
        self.try_open(index).map_err(|error| {
            invalid!(
                "device \"{self}\" cannot be opened: {error:#}; put that right, or set model.device or --device to \
                 \"auto\" or \"cpu\""
            )
        })
    }
}

/// What a device is called in settings.
pub fn name(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    }
}

/// Checks that a device computes in a type: a GPU may be too old to have it.
///
/// # Errors
/// What went wrong, and the types to take instead.
pub fn check_type(device: &Device, dtype: DType) -> Result<()> {
    check_type_by(device, dtype, probe)
}

fn check_type_by(
    device: &Device,
    dtype: DType,
    probe: impl Fn(&Device, DType) -> candle_core::Result<Vec<f32>>,
) -> Result<()> {
    let why = match probe(device, dtype) {
        Ok(values) if values.iter().all(|&value| value == 9.0) => return Ok(()),
        Ok(values) => format!("8 · 1 + 1 came out as {:?} there", values.first()),
        Err(error) => first_line(&error),
    };
    let others: Vec<String> = [DType::F16, DType::BF16, DType::F32]
        .iter()
        .filter(|other| **other != dtype)
        .map(|other| format!("\"{}\"", other.as_str()))
        .collect();
    let (name, dtype, others) = (name(device), dtype.as_str(), others.join(" or "));
    Err(invalid!(
        "device \"{name}\" does not compute in {dtype}: {why}; set model.dtype or --dtype to {others}, or the device to \
         \"cpu\""
    ))
}

/// 8 · 1 + 1 by a conversion, a product and a sum in that type, 64 times.
fn probe(device: &Device, dtype: DType) -> candle_core::Result<Vec<f32>> {
    let ones = Tensor::ones((8, 8), DType::F32, device)?.to_dtype(dtype)?;
    let sums = (ones.matmul(&ones)? + &ones)?;
    sums.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// The first accelerator of this build that works (the one with the number `index`, if there are several); else the
/// CPU, with a message on why each accelerator of the build cannot be opened.
pub fn best(index: usize) -> Device {
    for accelerator in Accelerator::built() {
        match accelerator.try_open(index) {
            Ok(device) => {
                log::debug(&format!("computing on {accelerator}"), json!({"device": accelerator.to_string()}));
                return device;
            }
            Err(error) => {
                let text = format!("computing on the CPU, as {accelerator} cannot be opened: {error:#}");
                log::info(&text, json!({"device": "cpu", "refused": accelerator.to_string()}));
            }
        }
    }
    Device::Cpu
}

fn open_cuda(index: usize) -> Result<Device> {
    #[cfg(all(feature = "cuda", target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    driver::load()?;
    #[cfg(feature = "cuda")]
    if let Ok(count) = candle_core::cuda_backend::cudarc::driver::CudaContext::device_count() {
        check_index(index, count as usize)?;
    }
    let device = Device::new_cuda(index).map_err(|error| anyhow!(first_line(&error)))?;
    #[cfg(all(feature = "cuda", target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    if let Device::Cuda(device) = &device {
        driver::keep_freed_memory(device.cuda_stream().context());
    }
    Ok(device)
}

/// Each of several processes on a machine takes the GPU with its number there.
#[cfg(any(feature = "cuda", test))]
fn check_index(index: usize, count: usize) -> Result<()> {
    if index >= count {
        bail!(
            "this process sees {count} GPUs, and would take the one of number {index}, from 0; every rank needs a GPU of \
             its own and must see those of all ranks on its machine (CUDA_VISIBLE_DEVICES)"
        );
    }
    Ok(())
}

fn open_metal(index: usize) -> Result<Device> {
    // candle takes the first of the machine's devices without checking that there is one.
    let opened = std::panic::catch_unwind(|| Device::new_metal(index));
    let opened = opened.map_err(|_| anyhow!("the machine has no Metal device"))?;
    opened.map_err(|error| anyhow!(first_line(&error)))
}

/// candle's message, without the backtrace that it appends if `RUST_BACKTRACE` is set.
fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_code;

    #[test]
    fn what_is_not_built_is_refused_with_what_to_do() {
        for accelerator in [Accelerator::Cuda, Accelerator::Metal].into_iter().filter(|a| !a.is_built()) {
            let error = accelerator.open(0).unwrap_err();
            assert_eq!(exit_code(&error), 2);
            let text = error.to_string();
            for part in [&format!("device \"{accelerator}\""), VERSION.as_str(), "--features", "\"cpu\""] {
                assert!(text.contains(part), "{text}");
            }
        }
    }

    #[test]
    fn a_type_that_a_device_lacks_is_refused_with_others() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            check_type(&Device::Cpu, dtype).unwrap();
        }
        let missing = |_: &Device, _| candle_core::bail!("named symbol not found\nbacktrace");
        let wrong = |_: &Device, _| Ok(vec![8.0; 64]);
        let missing = check_type_by(&Device::Cpu, DType::BF16, missing).unwrap_err();
        let wrong = check_type_by(&Device::Cpu, DType::F16, wrong).unwrap_err();
        for (error, parts) in [
            (missing, ["compute in bf16: named symbol not found;", "\"f16\" or \"f32\""]),
            (wrong, ["compute in f16: 8 · 1 + 1 came out as Some(8.0)", "\"bf16\" or \"f32\""]),
        ] {
            assert_eq!(exit_code(&error), 2);
            let text = error.to_string();
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_told_by_its_number() {
        assert!(check_index(0, 1).is_ok() && check_index(3, 4).is_ok());
        let text = check_index(4, 4).unwrap_err().to_string();
        assert!(text.contains("sees 4 GPUs") && text.contains("number 4, from 0"), "{text}");
    }

    #[test]
    fn the_best_device_can_be_computed_on() {
        let sum = Tensor::ones(3, DType::F32, &best(0)).unwrap().sum_all().unwrap();
        assert_eq!(sum.to_scalar::<f32>().unwrap(), 3.0);
    }
}

//! Devices: what this build can compute on, and opening one without a panic.
//!
//! CUDA and Metal are cargo features. A build with CUDA also runs on a machine without a GPU: the driver is loaded only
//! when a GPU is asked for, see `driver`.

#[cfg(all(feature = "cuda", target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod driver;

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
    Device::new_cuda(index).map_err(|error| anyhow!(first_line(&error)))
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

//! Where a tensor's values are: in this process's memory or in a GPU's.

use anyhow::{Context, Result, bail};
use candle_core::{CpuStorage, CudaStorage, InplaceOp1, Layout, Storage, Tensor};
use std::cell::Cell;

/// The address of the first value of a contiguous tensor, to read from.
pub fn of(x: &Tensor) -> Result<u64> {
    let (storage, layout) = x.storage_and_layout();
    let range = layout.contiguous_offsets().context("a kernel was given a strided view")?;
    match &*storage {
        Storage::Cpu(storage) => host(storage, range),
        Storage::Cuda(storage) => device(storage, range.0),
        Storage::Metal(_) => bail!("a buffer on Metal has no address"),
    }
}

/// The same, to write to.
pub fn to_write(x: &Tensor) -> Result<u64> {
    let address = Writable(Cell::new(0));
    x.inplace_op1(&address)?;
    Ok(address.0.get())
}

/// Finds the address of a tensor that may be written, and leaves its values as they are.
struct Writable(Cell<u64>);

impl InplaceOp1 for Writable {
    fn name(&self) -> &'static str {
        "address"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let range = contiguous(layout)?;
        let address = match storage {
            CpuStorage::F32(values) => {
                values.get_mut(range.0..range.1).map(|values| values.as_mut_ptr().expose_provenance())
            }
            CpuStorage::BF16(values) => {
                values.get_mut(range.0..range.1).map(|values| values.as_mut_ptr().expose_provenance())
            }
            CpuStorage::F16(values) => {
                values.get_mut(range.0..range.1).map(|values| values.as_mut_ptr().expose_provenance())
            }
            CpuStorage::F64(values) => {
                values.get_mut(range.0..range.1).map(|values| values.as_mut_ptr().expose_provenance())
            }
            _ => None,
        };
        match address {
            Some(address) => self.0.set(address as u64),
            None => candle_core::bail!("a kernel writes floats"),
        }
        Ok(())
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        let range = contiguous(layout)?;
        self.0.set(device(storage, range.0).map_err(candle_core::Error::wrap)?);
        Ok(())
    }
}

fn contiguous(layout: &Layout) -> candle_core::Result<(usize, usize)> {
    layout.contiguous_offsets().ok_or_else(|| candle_core::Error::msg("a kernel writes no strided views"))
}

fn host(storage: &CpuStorage, (start, end): (usize, usize)) -> Result<u64> {
    let address = match storage {
        CpuStorage::F32(values) => values.get(start..end).map(|values| values.as_ptr().expose_provenance()),
        CpuStorage::BF16(values) => values.get(start..end).map(|values| values.as_ptr().expose_provenance()),
        CpuStorage::F16(values) => values.get(start..end).map(|values| values.as_ptr().expose_provenance()),
        CpuStorage::U8(values) => values.get(start..end).map(|values| values.as_ptr().expose_provenance()),
        CpuStorage::F64(values) => values.get(start..end).map(|values| values.as_ptr().expose_provenance()),
        CpuStorage::U32(values) => values.get(start..end).map(|values| values.as_ptr().expose_provenance()),
        CpuStorage::I64(values) => values.get(start..end).map(|values| values.as_ptr().expose_provenance()),
        _ => None,
    };
    Ok(address.context("a kernel reads floats, u8, u32 and i64")? as u64)
}

#[cfg(feature = "cuda")]
fn device(storage: &CudaStorage, start: usize) -> Result<u64> {
    use candle_core::cuda_backend::CudaStorageSlice;
    use candle_core::cuda_backend::cudarc::driver::DevicePtr;
    let stream = storage.device.cuda_stream();
    // Everything is on one stream, so nothing waits for the guard.
    let (address, bytes) = match &storage.slice {
        CudaStorageSlice::F32(values) => (values.device_ptr(&stream).0, 4),
        CudaStorageSlice::BF16(values) => (values.device_ptr(&stream).0, 2),
        CudaStorageSlice::F16(values) => (values.device_ptr(&stream).0, 2),
        CudaStorageSlice::U8(values) => (values.device_ptr(&stream).0, 1),
        CudaStorageSlice::F64(values) => (values.device_ptr(&stream).0, 8),
        CudaStorageSlice::U32(values) => (values.device_ptr(&stream).0, 4),
        CudaStorageSlice::I64(values) => (values.device_ptr(&stream).0, 8),
        _ => bail!("a kernel reads floats, u8, u32 and i64"),
    };
    Ok(address + (start * bytes) as u64)
}

#[cfg(not(feature = "cuda"))]
fn device(_: &CudaStorage, _: usize) -> Result<u64> {
    bail!("this build has no kernels for CUDA")
}

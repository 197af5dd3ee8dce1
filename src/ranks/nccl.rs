//! NCCL through cudarc: sums between GPUs, which never pass through host memory. The ranks find each other by an
//! identifier that the first rank makes and MPI sends to the others.
//!
//! A sum is only queued on the stream that candle computes on, after what makes the tensor and before what reads it:
//! the host does not wait for it. If a rank is lost, the others' GPUs wait until the launcher ends the job.

use super::Ranks;
use anyhow::{Context, Result, anyhow};
use candle_core::cuda_backend::cudarc::nccl::result::{NcclError, get_nccl_version};
use candle_core::cuda_backend::cudarc::nccl::{Comm, Id, ReduceOp};
use candle_core::{CpuStorage, CudaDevice, CudaStorage, InplaceOp1, Layout, bail};
use std::ffi::c_char;

/// Length of an identifier in bytes.
const ID_BYTES: usize = 128;

/// A rank's end of the connection between the GPUs of all ranks.
pub struct Communicator {
    comm: Comm,
    version: String,
}

impl Communicator {
    /// Connects this rank's GPU to the others'. All ranks must call this together, each with its own GPU. A rank that
    /// alone fails here has to end the job, as the others wait for it.
    pub fn open(ranks: Ranks, device: &CudaDevice) -> Result<Self> {
        let version = get_nccl_version().map_err(|error| anyhow!("NCCL does not work: {}", told(&error)))?;
        let id = ranks.on_first(|| Id::new().map_err(|error| anyhow!("NCCL cannot start: {}", told(&error))))?;
        let id = id_of(&ranks.of_first(id.map_or_else(Vec::new, |id| bytes_of(&id))))?;
        let stream = device.cuda_stream();
        // NCCL uses the GPU that the calling thread has chosen.
        stream.context().bind_to_thread().context("choosing the GPU")?;
        let connected = Comm::from_rank(stream, ranks.rank(), ranks.size(), id);
        let communicator = connected.map_err(|error| {
            anyhow!(
                "NCCL cannot connect this rank's GPU to the others': {}; each rank needs one of its own",
                told(&error)
            )
        })?;
        let version = format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100);
        Ok(Self { comm: communicator, version })
    }

    /// The library's version, such as 2.27.3.
    pub fn version(&self) -> &str {
        &self.version
    }
}

impl InplaceOp1 for Communicator {
    fn name(&self) -> &'static str {
        "sum over the ranks' GPUs"
    }

    fn cpu_fwd(&self, _storage: &mut CpuStorage, _layout: &Layout) -> candle_core::Result<()> {
        bail!("{} takes tensors of a CUDA device", self.name())
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("{} takes contiguous f32", self.name()) };
        let mut values = storage.as_cuda_slice_mut::<f32>()?.slice_mut(start..end);
        let queued = self.comm.all_reduce_in_place(&mut values, &ReduceOp::Sum);
        queued.map(drop).map_err(|error| candle_core::Error::Msg(format!("NCCL cannot sum: {}", told(&error))))
    }
}

/// NCCL's name for an error, and where to read more.
fn told(error: &NcclError) -> String {
    format!("{:?} (NCCL_DEBUG=WARN in the environment makes it say why)", error.0)
}

fn bytes_of(id: &Id) -> Vec<u8> {
    id.internal().iter().flat_map(|byte| byte.to_ne_bytes()).collect()
}

fn id_of(bytes: &[u8]) -> Result<Id> {
    let bytes: &[u8; ID_BYTES] = bytes.try_into().context("rank 0 has sent no identifier of NCCL's")?;
    Ok(Id::uninit(bytes.map(|byte| c_char::from_ne_bytes([byte]))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::ALONE;
    use candle_core::{Device, Tensor};

    #[test]
    fn an_identifier_arrives_as_it_was_sent() {
        // NCCL makes an identifier without a GPU.
        let id = Id::new().map_err(|error| told(&error)).unwrap();
        let sent = bytes_of(&id);
        assert_eq!(id_of(&sent).unwrap().internal(), id.internal());
        for wrong in [&sent[1..], &[]] {
            assert!(id_of(wrong).err().unwrap().to_string().contains("rank 0 has sent no identifier"));
        }
    }

    /// On a machine with a GPU, where `ASFT_TEST_DEVICE` is `cuda`. Sums of several ranks: `tests/mpi.rs`.
    #[test]
    fn the_sum_of_one_gpu_is_its_own() {
        if std::env::var("ASFT_TEST_DEVICE").is_ok_and(|device| device == "cuda") {
            let device = crate::device::Accelerator::Cuda.open(0).unwrap();
            let Device::Cuda(gpu) = &device else { panic!("not CUDA") };
            let communicator = Communicator::open(ALONE, gpu).unwrap();
            let tensor = Tensor::arange(0f32, 6.0, &device).unwrap().reshape((2, 3)).unwrap();
            tensor.narrow(0, 1, 1).unwrap().inplace_op1(&communicator).unwrap();
            assert_eq!(tensor.to_vec2::<f32>().unwrap(), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]);
            assert!(tensor.t().unwrap().inplace_op1(&communicator).is_err());
        }
    }
}

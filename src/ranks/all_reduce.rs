//! Sums of tensors over the ranks: between GPUs by NCCL if the build has it (`nccl`), else by MPI in host memory.

use super::Ranks;
#[cfg(feature = "nccl")]
use super::nccl::Communicator;
use anyhow::Result;
use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Tensor, bail};

/// How the ranks sum tensors.
pub enum AllReduce {
    /// By MPI, in host memory, wherever the tensors are.
    Host(Ranks),
    /// By NCCL, where the tensors are.
    #[cfg(feature = "nccl")]
    Nccl(Communicator),
}

impl AllReduce {
    /// The best way that this build has for tensors on `device`. All ranks must call this together, with devices of one
    /// kind.
    ///
    /// # Errors
    /// GPUs that NCCL cannot connect.
    pub fn on(device: &Device) -> Result<Self> {
        let ranks = Ranks::here();
        match device {
            #[cfg(feature = "nccl")]
            Device::Cuda(device) if ranks.are_many() => Ok(Self::Nccl(Communicator::open(ranks, device)?)),
            _ => Ok(Self::Host(ranks)),
        }
    }

    /// Whether there is more than one rank to sum over.
    pub fn are_many(&self) -> bool {
        match self {
            Self::Host(ranks) => ranks.are_many(),
            #[cfg(feature = "nccl")]
            Self::Nccl(_) => true,
        }
    }

    /// The version of NCCL, if it does the sums.
    pub fn nccl_version(&self) -> Option<&str> {
        match self {
            Self::Host(_) => None,
            #[cfg(feature = "nccl")]
            Self::Nccl(communicator) => Some(communicator.version()),
        }
    }

    /// Sums a tensor over the ranks: f32, contiguous, of the same shape on all; all get the same sums. The sums may
    /// overwrite the tensor's memory, which no other tensor may share.
    pub fn sum(&self, tensor: Tensor) -> Result<Tensor> {
        match self {
            Self::Host(ranks) => {
                let values = tensor.to_device(&Device::Cpu)?;
                values.inplace_op1(&HostSum(*ranks))?;
                Ok(values.to_device(tensor.device())?)
            }
            #[cfg(feature = "nccl")]
            Self::Nccl(communicator) => {
                tensor.inplace_op1(communicator)?;
                Ok(tensor)
            }
        }
    }
}

struct HostSum(Ranks);

impl InplaceOp1 for HostSum {
    fn name(&self) -> &'static str {
        "sum over the ranks"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("{} takes contiguous f32", self.name())
        };
        self.0.sum_f32(&mut values[start..end]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    #[test]
    fn the_sum_of_one_rank_is_its_own_and_takes_what_it_says() {
        let all_reduce = AllReduce::on(&Device::Cpu).unwrap();
        assert!(!all_reduce.are_many());
        let tensor = Tensor::arange(0f32, 6.0, &Device::Cpu).unwrap().reshape((2, 3)).unwrap();
        let sum = all_reduce.sum(tensor.narrow(0, 1, 1).unwrap()).unwrap();
        assert_eq!(sum.to_vec2::<f32>().unwrap(), [[3.0, 4.0, 5.0]]);
        for refused in [tensor.t().unwrap(), tensor.to_dtype(DType::F64).unwrap()] {
            assert!(all_reduce.sum(refused).unwrap_err().to_string().contains("contiguous f32"));
        }
    }
}

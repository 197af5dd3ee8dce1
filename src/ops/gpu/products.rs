//! x Wᵀ in f32 of operands in half precision: the sums as they are, which candle's products round to their operands' type.
//!
//! On a GPU this is cuBLAS; the shim multiplies widened operands, which gives the same sums in another order.

#![cfg_attr(feature = "cuda", allow(unsafe_code, reason = "a call of cuBLAS"))]

use crate::ops::traffic::counted;
use anyhow::Result;
#[cfg(any(feature = "shim", feature = "cuda"))]
use candle_core::Device;
use candle_core::{DType, Tensor};

/// x: [m, k], W: [n, k], both bf16 or both f16, contiguous -> [m, n] in f32. None where there is no such product.
pub fn wide(x: &Tensor, weight: &Tensor) -> Result<Option<Tensor>> {
    let ((m, k), (n, columns)) = (x.dims2()?, weight.dims2()?);
    let half = matches!(x.dtype(), DType::BF16 | DType::F16) && weight.dtype() == x.dtype();
    if !half || k != columns || m * n * k == 0 || !x.is_contiguous() || !weight.is_contiguous() {
        return Ok(None);
    }
    let y = match x.device() {
        #[cfg(feature = "shim")]
        Device::Cpu if super::registry::language(&Device::Cpu) == Some(super::call::Language::Cuda) => {
            Some(x.to_dtype(DType::F32)?.matmul(&weight.to_dtype(DType::F32)?.t()?)?)
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => Some(cublas(device, x, weight)?),
        _ => None::<Tensor>,
    };
    Ok(y.map(|y| counted(y, &[x, weight])))
}

/// cuBLAS has matrices column by column: there x is [k, m], W is [k, n], and y = (Wᵀ x) is [n, m].
#[cfg(feature = "cuda")]
fn cublas(device: &candle_core::CudaDevice, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    use super::address;
    use anyhow::Context;
    use candle_core::cuda_backend::cudarc::cublas::{result, sys};
    let ((m, k), n) = (x.dims2()?, weight.dim(0)?);
    let operands =
        if x.dtype() == DType::BF16 { sys::cudaDataType_t::CUDA_R_16BF } else { sys::cudaDataType_t::CUDA_R_16F };
    let [columns, rows, inner] = [m, n, k].map(i32::try_from);
    let (columns, rows, inner) = (columns?, rows?, inner?);
    let (alpha, beta) = (1f32, 0f32);
    // SAFETY: cuBLAS writes all of y before what comes later on the same stream reads it.
    let y = unsafe { super::unwritten((m, n), DType::F32, x.device())? };
    let pointer = |address: u64| std::ptr::with_exposed_provenance_mut(address as usize);
    let handle = device.cublas_handle();
    // SAFETY: whole contiguous matrices of these types and sizes; the factors are f32, as sums are.
    unsafe {
        result::gemm_ex(
            *handle.handle(),
            sys::cublasOperation_t::CUBLAS_OP_T,
            sys::cublasOperation_t::CUBLAS_OP_N,
            rows,
            columns,
            inner,
            (&raw const alpha).cast(),
            pointer(address::of(weight)?),
            operands,
            inner,
            pointer(address::of(x)?),
            operands,
            inner,
            (&raw const beta).cast(),
            pointer(address::to_write(&y)?),
            sys::cudaDataType_t::CUDA_R_32F,
            rows,
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
        )
    }
    .context("cuBLAS")?;
    Ok(y)
}

//! ggml's blocks on any device: candle's own form of them, which its operations, or a kernel, widen.

#![allow(unsafe_code, reason = "a GPU kernel")]

use crate::ops::gpu::{self, Arg, Launch, unwritten};
use crate::quant::Ggml;
use crate::quant::ggml::GgmlType;
use anyhow::{Result, ensure};
use candle_core::quantized::{QStorage, QTensor};
use candle_core::{DType, Device, Tensor};
use std::borrow::Cow;

pub struct GgmlBlocks {
    kind: GgmlType,
    blocks: QTensor,
    /// A number on the device, by which kernels know it.
    like: Tensor,
}

impl GgmlBlocks {
    /// # Errors
    /// A type that Metal widens only by way of the host, which would wait in every product.
    pub fn new(Ggml { kind, bytes }: &Ggml, shape: (usize, usize), device: &Device) -> Result<Self> {
        ensure!(
            !device.is_metal(),
            "weights of the type {} cannot be used on Metal: they would be widened on the CPU in every product; \
             use model.quantize = \"nf4\" or a base that is not quantised",
            kind.name()
        );
        let storage = QStorage::from_data(Cow::Borrowed(bytes), device, kind.in_candle())?;
        Ok(Self { kind: *kind, blocks: QTensor::new(storage, shape)?, like: Tensor::zeros(1, DType::F32, device)? })
    }

    /// [rows, columns] in `dtype`
    pub fn dense(&self, dims: (usize, usize), dtype: DType) -> Result<Tensor> {
        let device = self.like.device();
        let Some(entry) = self.entry().filter(|_| gpu::GGML.serve(&[&self.like])) else {
            return Ok(self.blocks.dequantize(device)?.to_dtype(dtype)?);
        };
        let n = dims.0 * dims.1;
        // SAFETY: blocks of n values; the kernel writes all of `out`.
        unsafe {
            let out = unwritten(dims, dtype, device)?;
            let bytes = Arg::Raw { address: self.address()?, bytes: self.blocks.storage_size_in_bytes() };
            Launch::map(&gpu::GGML, entry, dtype, n).run(&[bytes, Arg::Out(&out), Arg::Large(n as u64)])?;
            Ok(out)
        }
    }

    /// The kernel for this type, if there is one.
    fn entry(&self) -> Option<&'static str> {
        match self.kind {
            GgmlType::Q4_0 => Some("q4_0"),
            GgmlType::Q4_1 => Some("q4_1"),
            GgmlType::Q8_0 => Some("q8_0"),
            GgmlType::Q4K => Some("q4_k"),
            GgmlType::Q6K => Some("q6_k"),
            _ => None,
        }
    }

    fn address(&self) -> Result<u64> {
        let pointer =
            if self.like.device().is_cpu() { self.blocks.data()?.as_ptr() } else { self.blocks.device_ptr()? };
        Ok(pointer.expose_provenance() as u64)
    }
}

//! A quantised weight on its device.

mod four_bit;
mod ggml;

use crate::ops::has_cpu_kernels;
use crate::quant::{Blocks, Quantised};
use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use four_bit::Codes;
use ggml::GgmlBlocks;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A quantised matrix, for the CPU's kernels or as tensors for any device.
#[derive(Clone)]
pub struct Packed(Arc<Inner>);

struct Inner {
    dims: (usize, usize),
    device: Device,
    place: Place,
    widened: Mutex<Widened>,
}

/// What becomes of a weight that is widened whole.
#[derive(Default)]
enum Widened {
    /// It is dropped after its product.
    #[default]
    Dropped,
    /// It is to be kept for the next product, and is there once the first has made it.
    Kept(Option<Tensor>),
}

enum Place {
    Host(Box<Quantised>),
    FourBit(Box<Codes>),
    Ggml(Box<GgmlBlocks>),
}

impl Packed {
    pub fn new(matrix: Quantised, device: &Device) -> Result<Self> {
        if !device.is_cpu() || !has_cpu_kernels() {
            return Self::on_device(&matrix, device);
        }
        let dims = matrix.shape();
        Ok(Self::at(Place::Host(Box::new(matrix)), dims, device))
    }

    /// As tensors.
    pub(super) fn on_device(matrix: &Quantised, device: &Device) -> Result<Self> {
        let place = match matrix.blocks() {
            Blocks::FourBit(values) => Place::FourBit(Box::new(Codes::new(values, device)?)),
            Blocks::Ggml(blocks) => Place::Ggml(Box::new(GgmlBlocks::new(blocks, matrix.shape(), device)?)),
        };
        Ok(Self::at(place, matrix.shape(), device))
    }

    fn at(place: Place, dims: (usize, usize), device: &Device) -> Self {
        Self(Arc::new(Inner { dims, device: device.clone(), place, widened: Mutex::default() }))
    }

    /// Whether the weight is to be kept once it is widened, until it is not.
    pub fn keep_widened(&self, keep: bool) {
        *self.widened() = if keep { Widened::Kept(None) } else { Widened::Dropped };
    }

    fn widened(&self) -> MutexGuard<'_, Widened> {
        self.0.widened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// (rows, columns)
    pub fn dims(&self) -> (usize, usize) {
        self.0.dims
    }

    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// The matrix for the CPU's kernels.
    pub fn host(&self) -> Option<&Quantised> {
        match &self.0.place {
            Place::Host(matrix) => Some(matrix),
            Place::FourBit(_) | Place::Ggml(_) => None,
        }
    }

    /// [rows, columns] in `dtype`
    pub fn dense(&self, dtype: DType) -> Result<Tensor> {
        let mut widened = self.widened();
        let Widened::Kept(kept) = &mut *widened else {
            drop(widened);
            return self.widen(dtype);
        };
        if let Some(kept) = kept.as_ref().filter(|kept| kept.dtype() == dtype) {
            return Ok(kept.clone());
        }
        Ok(kept.insert(self.widen(dtype)?).clone())
    }

    fn widen(&self, dtype: DType) -> Result<Tensor> {
        match &self.0.place {
            Place::Host(matrix) => {
                Ok(Tensor::from_vec(matrix.widened(), self.0.dims, &self.0.device)?.to_dtype(dtype)?)
            }
            Place::FourBit(codes) => codes.dense(self.0.dims, dtype),
            Place::Ggml(blocks) => blocks.dense(self.0.dims, dtype),
        }
    }

    /// The rows `ids`, [ids, columns] in f32.
    pub fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        let (_, columns) = self.0.dims;
        match &self.0.place {
            Place::Host(matrix) => {
                let mut out = vec![0f32; ids.len() * columns];
                for (out, id) in out.chunks_mut(columns.max(1)).zip(ids) {
                    anyhow::ensure!((*id as usize) < self.0.dims.0, "row {id} of a matrix of {}", self.0.dims.0);
                    matrix.widen(*id as usize * columns, out);
                }
                Ok(Tensor::from_vec(out, (ids.len(), columns), &self.0.device)?)
            }
            Place::Ggml(_) => Ok(self.dense(DType::F32)?.index_select(&Tensor::new(ids, &self.0.device)?, 0)?),
            Place::FourBit(codes) => {
                let ids = Tensor::new(ids, &self.0.device)?;
                match codes.rows(&ids, columns)? {
                    Some(rows) => Ok(rows),
                    None => Ok(self.dense(DType::F32)?.index_select(&ids, 0)?),
                }
            }
        }
    }
}

//! How a tensor's values are stored.

use crate::quant::ggml::GgmlType;
use safetensors::tensor::Dtype;
use std::fmt;

/// The type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Value by value.
    Plain(Dtype),
    /// In blocks along each row.
    Blocks(GgmlType),
}

impl Stored {
    /// A type of a GGUF file.
    pub fn of_ggml(kind: GgmlType) -> Self {
        match kind {
            GgmlType::F32 => Self::Plain(Dtype::F32),
            GgmlType::F16 => Self::Plain(Dtype::F16),
            GgmlType::Bf16 => Self::Plain(Dtype::BF16),
            blocks => Self::Blocks(blocks),
        }
    }

    /// The smallest number of bytes that can be read by themselves.
    pub fn unit_bytes(self) -> usize {
        match self {
            Self::Plain(dtype) => dtype.bitsize().div_ceil(8),
            Self::Blocks(kind) => kind.block_bytes(),
        }
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(dtype) => write!(f, "{dtype:?}"),
            Self::Blocks(kind) => f.write_str(kind.name()),
        }
    }
}

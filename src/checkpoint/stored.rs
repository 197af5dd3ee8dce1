//! Where a tensor is, and how its values are stored.

use super::gguf::Arrangement;
use crate::quant::ggml::GgmlType;
use safetensors::tensor::Dtype;
use std::fmt;

/// Bytes read at a time while converting, so that no tensor is ever held twice.
pub const READ_CHUNK_BYTES: usize = 1 << 20;

/// What a shard's header says about one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    pub shape: Vec<usize>,
    pub stored: Stored,
    pub(super) arrangement: Arrangement,
    pub(super) shard: usize,
    /// Absolute byte range in the shard's file.
    pub(super) start: u64,
    pub(super) end: u64,
}

impl TensorInfo {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn bytes(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// How many bytes to read at a time, and how many rows they are if that matters: whole units, or whole heads.
    pub(super) fn chunk(&self) -> (usize, usize) {
        match self.arrangement {
            Arrangement::HeadRows { heads } => {
                (self.bytes() / heads, self.shape.first().map_or(0, |rows| rows / heads))
            }
            _ => {
                let unit = self.stored.unit_bytes();
                (READ_CHUNK_BYTES / unit * unit, 0)
            }
        }
    }
}

/// The type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Value by value.
    Plain(Dtype),
    /// In blocks along each row.
    Blocks(GgmlType),
    /// In four bits, as bitsandbytes has them.
    FourBit,
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
            Self::FourBit => 1,
        }
    }

    pub fn is_quantised(self) -> bool {
        self.worst_error().is_some()
    }

    /// How far quantised weights may be from what they were made from, ‖W − W₀‖ / ‖W₀‖; `None` for others.
    pub fn worst_error(self) -> Option<f64> {
        match self {
            Self::Plain(_) => None,
            Self::Blocks(kind) => kind.worst_error(),
            // FP4 leaves half as much of normally distributed values, NF4 less.
            Self::FourBit => Some(0.25),
        }
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(dtype) => write!(f, "{dtype:?}"),
            Self::Blocks(kind) => f.write_str(kind.name()),
            Self::FourBit => f.write_str("bitsandbytes, four bits"),
        }
    }
}

//! The block formats of ggml, as GGUF files hold them: what a block is, its values, and blocks from values.
//!
//! A row is whole blocks. A block of the first generation is 32 values d·q, or d·q + m, with q of 4, 5 or 8 bits and d
//! and m in f16. A block of the second (`K`) is 256 values in groups of 16 or 32, whose scales of 4, 6 or 8 bits are
//! themselves multiples of one f16. Values are widened as the formats' reference does, operation by operation in f32,
//! so that they have its bits: <https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/quants.py>.

mod dots;
mod k_blocks;
mod parts;
mod small_blocks;
mod widen;

use crate::ensure_valid;
use anyhow::Result;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use parts::Parts;
use rayon::prelude::*;

/// Values in the longest block.
pub const LONGEST: usize = 256;

/// Values that a thread turns into blocks at a time: a multiple of every block.
const CHUNK: usize = 1 << 16;

/// How the values of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GgmlType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl GgmlType {
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// The type that a file calls `code`; `None` if its values cannot be read here.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// The type's number in files.
    pub const fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Bf16 => 30,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Values in a block; 1 for the float types.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => LONGEST,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Whether values are multiples of a block's scale, rather than floats of their own.
    pub const fn is_quantised(self) -> bool {
        self.block_len() > 1
    }

    /// How far quantised weights may be from what they were made from, ‖W − W₀‖ / ‖W₀‖: twice what the quantiser leaves of
    /// normally distributed values, since those of models have longer tails. `None` for float types.
    pub const fn worst_error(self) -> Option<f64> {
        Some(match self {
            Self::F32 | Self::F16 | Self::Bf16 => return None,
            Self::Q8_0 => 0.015,
            Self::Q6K => 0.04,
            Self::Q5_0 | Self::Q5_1 | Self::Q5K => 0.1,
            Self::Q4_0 | Self::Q4_1 | Self::Q4K => 0.2,
            Self::Q3K => 0.35,
            Self::Q2K => 0.65,
        })
    }

    /// Does `work` with what takes this type's blocks apart; nothing for types that have none.
    fn in_blocks(self, work: impl Work) {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => {}
            Self::Q4_0 => work.with(inlined!(small_blocks::q4_0)),
            Self::Q4_1 => work.with(inlined!(small_blocks::q4_1)),
            Self::Q5_0 => work.with(inlined!(small_blocks::q5_0)),
            Self::Q5_1 => work.with(inlined!(small_blocks::q5_1)),
            Self::Q8_0 => work.with(inlined!(small_blocks::q8_0)),
            Self::Q2K => work.with(inlined!(k_blocks::q2)),
            Self::Q3K => work.with(inlined!(k_blocks::q3)),
            Self::Q4K => work.with(inlined!(k_blocks::q4)),
            Self::Q5K => work.with(inlined!(k_blocks::q5)),
            Self::Q6K => work.with(inlined!(k_blocks::q6)),
        }
    }

    /// The blocks nearest to `values`, by candle's quantisers, which are llama.cpp's; on all threads.
    ///
    /// # Errors
    /// A number of values that is not whole blocks; values that are infinite or NaN.
    pub fn quantise(self, values: &[f32]) -> Result<Vec<u8>> {
        ensure_valid!(
            values.len().is_multiple_of(self.block_len()),
            "{} values are not whole blocks of {}, which have {}",
            values.len(),
            self.name(),
            self.block_len()
        );
        ensure_valid!(values.par_iter().all(|v| v.is_finite()), "values that are infinite or NaN cannot be quantised");
        let mut bytes = vec![0; values.len() / self.block_len() * self.block_bytes()];
        let parts = bytes.par_chunks_mut(CHUNK / self.block_len() * self.block_bytes()).zip(values.par_chunks(CHUNK));
        parts.try_for_each(|(bytes, values)| -> Result<()> {
            let tensor = Tensor::from_slice(values, values.len(), &Device::Cpu)?;
            bytes.copy_from_slice(&QTensor::quantize(&tensor, self.in_candle())?.data()?);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// The type in candle's words.
    pub const fn in_candle(self) -> GgmlDType {
        match self {
            Self::F32 => GgmlDType::F32,
            Self::F16 => GgmlDType::F16,
            Self::Bf16 => GgmlDType::BF16,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q2K => GgmlDType::Q2K,
            Self::Q3K => GgmlDType::Q3K,
            Self::Q4K => GgmlDType::Q4K,
            Self::Q5K => GgmlDType::Q5K,
            Self::Q6K => GgmlDType::Q6K,
        }
    }
}

/// A function as a closure that becomes part of its callers. The function itself, called as a value, would be compiled apart from
/// them, for any CPU.
macro_rules! inlined {
    ($function:path) => {
        #[inline(always)]
        |block| $function(block)
    };
}
use inlined;

/// What can be done with the blocks of any type.
trait Work {
    fn with<const BYTES: usize, const WIDTH: usize, const GROUPS: usize>(
        self,
        take_apart: impl Fn(&[u8; BYTES]) -> Parts<WIDTH, GROUPS>,
    );
}

#[cfg(test)]
mod tests;

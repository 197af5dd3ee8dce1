//! From stored bytes to values of the types that a model computes in.

use super::stored::Stored;
use crate::quant::ggml::GgmlType;
use half::{bf16, f16};
use safetensors::tensor::Dtype;

/// Appends the values in the little-endian bytes to the vector.
pub type Decoder<T> = Box<dyn Fn(&[u8], &mut Vec<T>)>;

/// The same for values that are stored one by one.
type Plain<T> = fn(&[u8], &mut Vec<T>);

/// A float type that tensors are read as: unchanged from its own bytes, otherwise via f32, rounded to nearest even.
pub trait Float: Copy + 'static {
    /// For values stored in `dtype`; `None` if that is not a float type of checkpoints.
    fn plain(dtype: Dtype) -> Option<Plain<Self>>;

    fn from_wide(value: f32) -> Self;

    /// For tensors stored so; `None` if their values are no floats.
    fn decoder(stored: Stored) -> Option<Decoder<Self>> {
        match stored {
            Stored::Plain(dtype) => Some(Box::new(Self::plain(dtype)?)),
            Stored::FourBit => None,
            Stored::Blocks(kind) => Some(Box::new(move |bytes, out| widen(kind, bytes, out))),
        }
    }
}

/// Appends the values of whole blocks.
fn widen<T: Float>(kind: GgmlType, bytes: &[u8], out: &mut Vec<T>) {
    let mut wide = vec![0f32; bytes.len() / kind.block_bytes() * kind.block_len()];
    kind.widen(bytes, &mut wide);
    out.extend(wide.into_iter().map(T::from_wide));
}

/// Whether none of the values is infinite or NaN.
pub fn all_finite(values: &[f32]) -> bool {
    // A part at a time, in a loop without an end of its own, which can be one of vectors.
    values.chunks(4096).all(|part| part.iter().fold(true, |finite, value| finite & value.is_finite()))
}

fn f32_of(b: [u8; 4]) -> f32 {
    f32::from_le_bytes(b)
}

fn f16_of(b: [u8; 2]) -> f16 {
    f16::from_le_bytes(b)
}

fn bf16_of(b: [u8; 2]) -> bf16 {
    bf16::from_le_bytes(b)
}

/// Appends `value` of each `N` bytes.
fn extend<const N: usize, T>(bytes: &[u8], out: &mut Vec<T>, value: impl Fn([u8; N]) -> T) {
    out.extend(bytes.as_chunks::<N>().0.iter().map(|&bytes| value(bytes)));
}

impl Float for f32 {
    fn from_wide(value: f32) -> Self {
        value
    }

    fn plain(dtype: Dtype) -> Option<Plain<Self>> {
        Some(match dtype {
            Dtype::F32 => |bytes, out| extend(bytes, out, f32_of),
            Dtype::F16 => |bytes, out| extend(bytes, out, |b| f16_of(b).to_f32()),
            Dtype::BF16 => |bytes, out| extend(bytes, out, |b| bf16_of(b).to_f32()),
            _ => return None,
        })
    }
}

impl Float for bf16 {
    fn from_wide(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn plain(dtype: Dtype) -> Option<Plain<Self>> {
        Some(match dtype {
            Dtype::F32 => |bytes, out| extend(bytes, out, |b| Self::from_f32(f32_of(b))),
            Dtype::F16 => |bytes, out| extend(bytes, out, |b| Self::from_f32(f16_of(b).to_f32())),
            Dtype::BF16 => |bytes, out| extend(bytes, out, bf16_of),
            _ => return None,
        })
    }
}

impl Float for f16 {
    fn from_wide(value: f32) -> Self {
        Self::from_f32(value)
    }

    fn plain(dtype: Dtype) -> Option<Plain<Self>> {
        Some(match dtype {
            Dtype::F32 => |bytes, out| extend(bytes, out, |b| Self::from_f32(f32_of(b))),
            Dtype::F16 => |bytes, out| extend(bytes, out, f16_of),
            Dtype::BF16 => |bytes, out| extend(bytes, out, |b| Self::from_f32(bf16_of(b).to_f32())),
            _ => return None,
        })
    }
}

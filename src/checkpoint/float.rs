//! Stored bytes to values of one of the types that a model computes in.

use half::{bf16, f16};
use safetensors::tensor::Dtype;

/// Appends what the bytes hold, little-endian, to the values.
pub type Decoder<T> = fn(&[u8], &mut Vec<T>);

/// A float type that tensors are read as: from its own bytes unchanged, from another type's by way of f32, rounded to
/// nearest even.
pub trait Float: Copy {
    /// For tensors that are stored in `dtype`; `None` where that is no float type of a checkpoint.
    fn decoder(dtype: Dtype) -> Option<Decoder<Self>>;
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

/// Each `N` bytes through `value`.
fn extend<const N: usize, T>(bytes: &[u8], out: &mut Vec<T>, value: impl Fn([u8; N]) -> T) {
    out.extend(bytes.as_chunks::<N>().0.iter().map(|&bytes| value(bytes)));
}

impl Float for f32 {
    fn decoder(dtype: Dtype) -> Option<Decoder<Self>> {
        Some(match dtype {
            Dtype::F32 => |bytes, out| extend(bytes, out, f32_of),
            Dtype::F16 => |bytes, out| extend(bytes, out, |b| f16_of(b).to_f32()),
            Dtype::BF16 => |bytes, out| extend(bytes, out, |b| bf16_of(b).to_f32()),
            _ => return None,
        })
    }
}

impl Float for bf16 {
    fn decoder(dtype: Dtype) -> Option<Decoder<Self>> {
        Some(match dtype {
            Dtype::F32 => |bytes, out| extend(bytes, out, |b| Self::from_f32(f32_of(b))),
            Dtype::F16 => |bytes, out| extend(bytes, out, |b| Self::from_f32(f16_of(b).to_f32())),
            Dtype::BF16 => |bytes, out| extend(bytes, out, bf16_of),
            _ => return None,
        })
    }
}

impl Float for f16 {
    fn decoder(dtype: Dtype) -> Option<Decoder<Self>> {
        Some(match dtype {
            Dtype::F32 => |bytes, out| extend(bytes, out, |b| Self::from_f32(f32_of(b))),
            Dtype::F16 => |bytes, out| extend(bytes, out, f16_of),
            Dtype::BF16 => |bytes, out| extend(bytes, out, |b| Self::from_f32(bf16_of(b).to_f32())),
            _ => return None,
        })
    }
}

//! From stored bytes to values of the types that a model computes in.

use half::{bf16, f16};
use safetensors::tensor::Dtype;

/// Appends the values in the little-endian bytes to the vector.
pub type Decoder<T> = fn(&[u8], &mut Vec<T>);

/// A float type that tensors are read as: unchanged from its own bytes, otherwise via f32, rounded to nearest even.
pub trait Float: Copy {
    /// For tensors stored in `dtype`; `None` if that is not a float type of checkpoints.
    fn decoder(dtype: Dtype) -> Option<Decoder<Self>>;
}

/// Whether none of the values is infinite or NaN.
pub fn all_finite(values: &[f32]) -> bool {
    values.iter().all(|value| value.is_finite())
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

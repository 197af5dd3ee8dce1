//! The values of blocks.

use super::parts::Parts;
use super::{GgmlType, Work};
use crate::vectors::vectorised;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};

impl GgmlType {
    /// The values of whole blocks: `out.len()` is a multiple of [`GgmlType::block_len`], and `bytes` holds as many
    /// blocks. What a damaged block holds becomes infinite or NaN ([`GgmlType::is_finite`]), nothing else.
    pub fn widen(self, bytes: &[u8], out: &mut [f32]) {
        debug_assert_eq!(bytes.len() / self.block_bytes(), out.len() / self.block_len());
        match self {
            Self::F32 => each(bytes, out, |b, out| *out = [f32::from_le_bytes(*b)]),
            Self::F16 => halves(bytes, out),
            // bf16 is the upper half of an f32: a shift, which the compiler vectorises.
            Self::Bf16 => each(bytes, out, |b, out| *out = [f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16)]),
            _ => self.in_blocks(Widen { bytes, out }),
        }
    }

    /// Whether the values of whole blocks are all finite. Of quantised blocks only the factors are looked at: what they multiply is
    /// too small to overflow.
    pub fn is_finite(self, bytes: &[u8]) -> bool {
        match self {
            Self::F32 => bytes.as_chunks::<4>().0.iter().all(|b| f32::from_le_bytes(*b).is_finite()),
            Self::F16 => bytes.as_chunks::<2>().0.iter().all(|b| f16::from_le_bytes(*b).is_finite()),
            Self::Bf16 => bytes.as_chunks::<2>().0.iter().all(|b| bf16::from_le_bytes(*b).is_finite()),
            _ => {
                let mut finite = true;
                self.in_blocks(Finite { bytes, finite: &mut finite });
                finite
            }
        }
    }
}

/// For [`GgmlType::widen`].
struct Widen<'a> {
    bytes: &'a [u8],
    out: &'a mut [f32],
}

impl Work for Widen<'_> {
    fn with<const BYTES: usize, const WIDTH: usize, const GROUPS: usize>(
        self,
        take_apart: impl Fn(&[u8; BYTES]) -> Parts<WIDTH, GROUPS>,
    ) {
        let (blocks, groups) = (self.bytes.as_chunks().0, self.out.as_chunks_mut().0.as_chunks_mut().0);
        Arch::new().dispatch(WidenBlocks { blocks, groups, take_apart });
    }
}

/// [`Widen`] of a type.
struct WidenBlocks<'a, const BYTES: usize, const WIDTH: usize, const GROUPS: usize, F> {
    blocks: &'a [[u8; BYTES]],
    groups: &'a mut [[[f32; WIDTH]; GROUPS]],
    take_apart: F,
}

impl<const BYTES: usize, const WIDTH: usize, const GROUPS: usize, F> WithSimd
    for WidenBlocks<'_, BYTES, WIDTH, GROUPS, F>
where
    F: Fn(&[u8; BYTES]) -> Parts<WIDTH, GROUPS>,
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (block, groups) in self.blocks.iter().zip(self.groups) {
            let parts = (self.take_apart)(block);
            for (g, out) in groups.iter_mut().enumerate() {
                let (scale, min) = (simd.splat_f32s(parts.scales[g]), simd.splat_f32s(parts.minima[g]));
                let wide = parts.wide(g);
                for (out, q) in S::as_mut_simd_f32s(out).0.iter_mut().zip(S::as_simd_f32s(&wide).0) {
                    *out = simd.sub_f32s(simd.mul_f32s(scale, *q), min);
                }
            }
        }
    }
}

/// For [`GgmlType::is_finite`].
struct Finite<'a> {
    bytes: &'a [u8],
    finite: &'a mut bool,
}

impl Work for Finite<'_> {
    fn with<const BYTES: usize, const WIDTH: usize, const GROUPS: usize>(
        self,
        take_apart: impl Fn(&[u8; BYTES]) -> Parts<WIDTH, GROUPS>,
    ) {
        *self.finite = self.bytes.as_chunks().0.iter().all(|block| {
            let parts = take_apart(block);
            parts.scales.iter().chain(&parts.minima).all(|factor| factor.is_finite())
        });
    }
}

/// Calls `widen` with each block of `BYTES` and the `LEN` values that it becomes.
#[inline(always)]
fn each<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    widen: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    vectorised!({
        for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
            widen(block, out);
        }
    });
}

/// f16 values, many at a time: the processor's instruction for them takes eight.
fn halves(bytes: &[u8], out: &mut [f32]) {
    let mut aligned = [f16::ZERO; 256];
    for (bytes, out) in bytes.chunks(2 * aligned.len()).zip(out.chunks_mut(aligned.len())) {
        for (half, b) in aligned.iter_mut().zip(bytes.as_chunks().0) {
            *half = f16::from_le_bytes(*b);
        }
        aligned[..out.len()].convert_to_f32_slice(out);
    }
}

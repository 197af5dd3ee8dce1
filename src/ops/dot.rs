//! Inner products of a row as it is stored with a row of f32.

use crate::vectors::prefetch_after;
use pulp::{Arch, Simd, WithSimd};

/// Sums side by side, whatever the length of the CPU's vectors, so that every machine computes the same bits.
const LANES: usize = 64;

/// ⟨w, x⟩ over as many values as the shorter has, `wide` of w's: [`LANES`] sums, which are then halved until one is left. Products are not
/// fused with sums.
#[inline(always)]
pub fn dot<T: Copy>(w: &[T], x: &[f32], wide: impl Fn(T) -> f32) -> f32 {
    Arch::new().dispatch(Dot { w, x, wide })
}

struct Dot<'a, T, W> {
    w: &'a [T],
    x: &'a [f32],
    wide: W,
}

impl<T: Copy, W: Fn(T) -> f32> WithSimd for Dot<'_, T, W> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        match S::F32_LANES {
            16 => self.sum::<S, 4>(simd),
            8 => self.sum::<S, 8>(simd),
            4 => self.sum::<S, 16>(simd),
            _ => self.sum::<S, LANES>(simd),
        }
    }
}

impl<T: Copy, W: Fn(T) -> f32> Dot<'_, T, W> {
    /// In V vectors of [`LANES`] / V values. Not as a loop over an array of sums, which compilers keep in memory.
    #[inline(always)]
    fn sum<S: Simd, const V: usize>(self, simd: S) -> f32 {
        let ((w_chunks, w_rest), (x_chunks, x_rest)) = (self.w.as_chunks::<LANES>(), self.x.as_chunks::<LANES>());
        let mut sums = [simd.splat_f32s(0.0); V];
        for (w, x) in w_chunks.iter().zip(x_chunks) {
            prefetch_after(w);
            let mut values = [0f32; LANES];
            for i in 0..LANES {
                values[i] = (self.wide)(w[i]);
            }
            let (values, x) = (S::as_simd_f32s(&values).0, S::as_simd_f32s(x).0);
            for v in 0..V {
                sums[v] = simd.add_f32s(sums[v], simd.mul_f32s(values[v], x[v]));
            }
        }
        let mut width = V / 2;
        while width > 0 {
            for v in 0..width {
                sums[v] = simd.add_f32s(sums[v], sums[v + width]);
            }
            width /= 2;
        }
        let mut lanes = [0f32; LANES];
        S::as_mut_simd_f32s(&mut lanes).0[0] = sums[0];
        width = S::F32_LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        let rest: f32 = w_rest.iter().zip(x_rest).map(|(w, x)| (self.wide)(*w) * x).sum();
        lanes[0] + rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::widen::of_bf16;
    use crate::vectors::of_this_cpu;
    use half::bf16;

    /// Lane by lane, one value after another.
    fn naive(w: &[f32], x: &[f32]) -> f32 {
        let whole = w.len() / LANES * LANES;
        let mut lanes = [0f32; LANES];
        for i in 0..whole {
            lanes[i % LANES] += w[i] * x[i];
        }
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0] + w[whole..].iter().zip(&x[whole..]).map(|(w, x)| w * x).sum::<f32>()
    }

    #[test]
    fn every_cpu_computes_the_same_bits() {
        for length in [0, 1, 63, 64, 65, 576, 1500] {
            let value = |i: usize, step: usize| ((i * step) % 1009) as f32 / 500.0 - 1.0;
            let narrow: Vec<bf16> = (0..length).map(|i| bf16::from_f32(value(i, 7919))).collect();
            let w: Vec<f32> = narrow.iter().map(|w| w.to_f32()).collect();
            let x: Vec<f32> = (0..length).map(|i| value(i, 631)).collect();
            for arch in of_this_cpu() {
                let found = arch.dispatch(Dot { w: &w, x: &x, wide: |w| w });
                assert_eq!(found.to_bits(), naive(&w, &x).to_bits(), "{length} values, {arch:?}");
                let found = arch.dispatch(Dot { w: &narrow, x: &x, wide: of_bf16 });
                assert_eq!(found.to_bits(), naive(&w, &x).to_bits(), "{length} values of bf16, {arch:?}");
            }
        }
    }
}

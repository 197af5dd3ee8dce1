//! What a penalty on a low-rank update B A needs besides its products with U: r × r matrices in f64, and columns
//! weighted twice. A: [r, d_in]; B and its images G, H: [d_out, r].
//!
//! r is small, and so are these matrices: as tensor operations they would take longer to call than to compute.

pub mod grouped;
#[cfg(all(test, feature = "shim"))]
mod grouped_tests;

use super::fast_math::vectorised;
use super::scalar::{Scalar, wide};
use super::sum::scaled;
use super::traffic::counted;
use super::{cast, fused, linear, output, with_f32};
use anyhow::Result;
use candle_core::{DType, Tensor};

/// Sums side by side in a product of two rows.
const LANES: usize = 16;

/// What is penalised of B, with C = U diag(c) Uᵀ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// G = (I − C) B, and H = (I − C) G.
    Rest,
    /// G = C B, and H = C G.
    Aligned,
}

/// G and H of B [d_out, r] for U [d_out, k] and c [k, 1], in two products with U.
pub fn images(basis: &Tensor, c: &Tensor, b: &Tensor, image: Image) -> Result<(Tensor, Tensor)> {
    let y = coordinates(basis, b)?; // [k, r]
    let second = match image {
        Image::Rest => twice_removed(c)?,
        Image::Aligned => c.sqr()?,
    };
    let both = linear::backward_input(basis, &weighted(&y, &[c, &second])?)?; // [d_out, 2 r]
    halves(&both, (image == Image::Rest).then_some(b))
}

/// 2c − c², with which (I − C)² x = x − U ((2c − c²) ∘ Uᵀx).
pub fn twice_removed(c: &Tensor) -> Result<Tensor> {
    Ok(((c * 2.0)? - c.sqr()?)?)
}

/// H = (I − C)² B alone, for `removed` from [`twice_removed`]: half of the second product with U.
pub fn rest_twice(basis: &Tensor, removed: &Tensor, b: &Tensor) -> Result<Tensor> {
    let y = coordinates(basis, b)?; // [k, r]
    let image = linear::backward_input(basis, &weighted(&y, &[removed])?)?; // [d_out, r]
    Ok(counted((b - &image)?, &[b, &image]))
}

/// y = Uᵀ x [k, n] for U [d_out, k] and x [d_out, n].
pub fn coordinates(basis: &Tensor, x: &Tensor) -> Result<Tensor> {
    linear::backward_weight(basis, &x.contiguous()?)
}

/// With S = A Aᵀ and T = XᵀY, where (X, Y) is (G, G) or (B, H): ⟨T, S⟩ and, times `scale`, T A [r, d_in] and H S [d_out, r] in f32.
/// Computed in f64 if the device has it (all but Metal).
pub fn products(a: &Tensor, (x, y): (&Tensor, &Tensor), h: &Tensor, scale: f64) -> Result<(Scalar, Tensor, Tensor)> {
    let ((r, d_in), (d_out, columns)) = (a.dims2()?, h.dims2()?);
    anyhow::ensure!(
        columns == r && [x, y].iter().all(|side| side.dims() == h.dims()),
        "A {:?} does not fit {:?}, {:?} and {:?}",
        a.dims(),
        x.dims(),
        y.dims(),
        h.dims()
    );
    let f32_only = [a, x, y, h].iter().all(|x| x.dtype() == DType::F32);
    if r * d_in * d_out == 0 || !f32_only || !fused(&[a, x, y, h]) {
        return generic(a, (x, y), h, scale);
    }
    let (inner, grad_a, grad_b) = with_f32([a, x, y, h], |[a, x, y, h]| {
        let (s, t) = (row_products(a, d_in), column_products((x, y), r));
        let inner = s.iter().zip(&t).map(|(s, t)| s * t).sum::<f64>();
        (inner, combine_rows(&t, a, d_in, scale), combine_columns(h, &s, r, scale))
    })?;
    Ok((Scalar::Known(inner), output(grad_a, (r, d_in), a)?, output(grad_b, (d_out, r), a)?))
}

fn generic(a: &Tensor, (x, y): (&Tensor, &Tensor), h: &Tensor, scale: f64) -> Result<(Scalar, Tensor, Tensor)> {
    let wide = wide(a.device());
    let (a, x, y, h) = (cast(a, wide)?, cast(x, wide)?, cast(y, wide)?, cast(h, wide)?);
    let (s, t) = (counted(a.matmul(&a.t()?)?, &[&a]), counted(x.t()?.matmul(&y)?, &[&x, &y]));
    let product = counted((&t * &s)?, &[&t, &s]);
    let inner = Scalar::of(counted(product.sum_all()?, &[&product]))?;
    let narrow = |x: Tensor| cast(&scaled(&x, scale)?, DType::F32);
    Ok((inner, narrow(counted(t.matmul(&a)?, &[&t, &a]))?, narrow(counted(h.matmul(&s)?, &[&h, &s]))?))
}

/// A Aᵀ [r, r] for rows of `width`.
fn row_products(a: &[f32], width: usize) -> Vec<f64> {
    vectorised!({
        let r = a.len() / width;
        let mut out = vec![0f64; r * r];
        for (i, x) in a.chunks_exact(width).enumerate() {
            for (j, y) in a.chunks_exact(width).take(i + 1).enumerate() {
                let mut lanes = [0f64; LANES];
                for (x, y) in x.chunks(LANES).zip(y.chunks(LANES)) {
                    for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
                        *lane += f64::from(*x) * f64::from(*y);
                    }
                }
                let sum = lanes.iter().sum();
                (out[i * r + j], out[j * r + i]) = (sum, sum);
            }
        }
        out
    })
}

/// XᵀY [r, r] for rows of r.
fn column_products((x, y): (&[f32], &[f32]), r: usize) -> Vec<f64> {
    vectorised!({
        let mut out = vec![0f64; r * r];
        let mut wide = vec![0f64; r];
        for (x, y) in x.chunks_exact(r).zip(y.chunks_exact(r)) {
            wide.iter_mut().zip(y).for_each(|(wide, y)| *wide = f64::from(*y));
            for (sums, x) in out.chunks_exact_mut(r).zip(x) {
                let x = f64::from(*x);
                sums.iter_mut().zip(&wide).for_each(|(sum, y)| *sum += x * y);
            }
        }
        out
    })
}

/// `scale` · T A for A's rows of `width`.
fn combine_rows(t: &[f64], a: &[f32], width: usize, scale: f64) -> Vec<f32> {
    vectorised!({
        let r = a.len() / width;
        let mut out = Vec::with_capacity(a.len());
        let mut sums = vec![0f64; width];
        for weights in t.chunks_exact(r) {
            sums.fill(0.0);
            for (weight, row) in weights.iter().zip(a.chunks_exact(width)) {
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * f64::from(*x));
            }
            out.extend(sums.iter().map(|sum| (sum * scale) as f32));
        }
        out
    })
}

/// `scale` · H S for rows of r; S is symmetric.
fn combine_columns(h: &[f32], s: &[f64], r: usize, scale: f64) -> Vec<f32> {
    vectorised!({
        let mut out = Vec::with_capacity(h.len());
        let mut sums = vec![0f64; r];
        for row in h.chunks_exact(r) {
            sums.fill(0.0);
            for (x, weights) in row.iter().zip(s.chunks_exact(r)) {
                let x = f64::from(*x);
                sums.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += x * weight);
            }
            out.extend(sums.iter().map(|sum| (sum * scale) as f32));
        }
        out
    })
}

/// y [k, n] with its rows weighted by each of N columns [k, 1], side by side: [k, N n].
pub fn weighted<const N: usize>(y: &Tensor, weights: &[&Tensor; N]) -> Result<Tensor> {
    let (k, n) = y.dims2()?;
    if let Some(other) = weights.iter().find(|weights| weights.dims() != [k, 1]) {
        anyhow::bail!("weights {:?} are not of the rows of {:?}", other.dims(), y.dims());
    }
    if n == 0 || !fused(&[y]) || !fused(weights) {
        let weighted = |c: &&Tensor| Ok::<_, anyhow::Error>(counted(y.broadcast_mul(c)?, &[y, c]));
        let parts = weights.iter().map(weighted).collect::<Result<Vec<_>>>()?;
        return Ok(match &parts[..] {
            [one] => one.clone(),
            parts => counted(Tensor::cat(parts, 1)?, &parts.iter().collect::<Vec<_>>()),
        });
    }
    let all = with_f32([y], |[y]| {
        with_f32(*weights, |weights| {
            let mut all = Vec::with_capacity(N * k * n);
            for (i, row) in y.chunks_exact(n).enumerate() {
                weights.iter().for_each(|weights| all.extend(row.iter().map(|y| y * weights[i])));
            }
            all
        })
    })??;
    output(all, (k, N * n), y)
}

/// The two halves of z's [m, 2 n] columns, [m, n] each; given x [m, n], x minus each.
pub fn halves(z: &Tensor, x: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
    let ((m, both), n) = (z.dims2()?, z.dim(1)? / 2);
    let fit = both == 2 * n && x.is_none_or(|x| x.dims() == [m, n]);
    anyhow::ensure!(fit, "{:?} has no halves of {:?}", z.dims(), x.map(Tensor::dims));
    let x = x.map(Tensor::contiguous).transpose()?;
    if n == 0 || !fused(&[z]) || x.as_ref().is_some_and(|x| !fused(&[x])) {
        let (first, second) = (z.narrow(1, 0, n)?, z.narrow(1, n, n)?);
        return Ok(match x {
            Some(x) => (counted((&x - &first)?, &[&x, &first]), counted((&x - &second)?, &[&x, &second])),
            None => (counted(first.contiguous()?, &[&first]), counted(second.contiguous()?, &[&second])),
        });
    }
    let mut parts = [Vec::with_capacity(m * n), Vec::with_capacity(m * n)];
    match &x {
        Some(x) => with_f32([z, x], |[z, x]| {
            for (z, x) in z.chunks_exact(2 * n).zip(x.chunks_exact(n)) {
                for (part, z) in parts.iter_mut().zip(z.chunks_exact(n)) {
                    part.extend(x.iter().zip(z).map(|(x, z)| x - z));
                }
            }
        })?,
        None => with_f32([z], |[z]| {
            for z in z.chunks_exact(2 * n) {
                parts.iter_mut().zip(z.chunks_exact(n)).for_each(|(part, z)| part.extend_from_slice(z));
            }
        })?,
    }
    let [first, second] = parts;
    Ok((output(first, (m, n), z)?, output(second, (m, n), z)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{close, random};

    #[test]
    fn kernels_equal_generic() {
        for (r, d_in, d_out) in [(8, 70, 50), (1, 1, 1), (3, 33, 17), (20, 5, 9)] {
            let (a, g, h) = (random(&[r, d_in], 1), random(&[d_out, r], 2), random(&[d_out, r], 3));
            for sides in [(&g, &g), (&g, &h)] {
                let (fast, slow) = (products(&a, sides, &h, 0.7).unwrap(), generic(&a, sides, &h, 0.7).unwrap());
                assert!((fast.0.read().unwrap() / slow.0.read().unwrap() - 1.0).abs() < 1e-12);
                close(&fast.1, &slow.1, 1e-7);
                close(&fast.2, &slow.2, 1e-7);
            }
            let longer = random(&[d_out + 1, r], 3);
            for (x, y, h) in [(&g, &g, &longer), (&longer, &g, &h), (&g, &longer, &h)] {
                assert!(products(&a, (x, y), h, 0.7).is_err());
            }
        }
    }

    #[test]
    fn weights_and_halves_undo_one_another() {
        let (y, c, d) = (random(&[13, 5], 1), random(&[13, 1], 2), random(&[13, 1], 3));
        let both = weighted(&y, &[&c, &d]).unwrap();
        let expected = [&c, &d].map(|c| y.broadcast_mul(c).unwrap());
        for x in [None, Some(random(&[13, 5], 4))] {
            // A strided view goes down the generic path.
            let strided = both.t().unwrap().contiguous().unwrap().t().unwrap();
            for both in [&both, &strided] {
                let (first, second) = halves(both, x.as_ref()).unwrap();
                for (part, expected) in [first, second].iter().zip(&expected) {
                    let expected = x.as_ref().map_or(expected.clone(), |x| (x - expected).unwrap());
                    close(part, &expected, 1e-7);
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let (z, odd) = (random(&[4, 6], 1), random(&[4, 5], 1));
        assert!(halves(&z, Some(&random(&[4, 3], 2))).is_ok());
        for x in [random(&[4, 2], 2), random(&[5, 3], 2), random(&[3, 4], 2), random(&[12], 2)] {
            assert!(halves(&z, Some(&x)).is_err(), "{:?}", x.dims());
        }
        assert!(halves(&odd, None).is_err());
        let (four, five) = (random(&[4, 1], 3), random(&[5, 1], 3));
        assert!(weighted(&z, &[&four, &four]).is_ok());
        for (c, d) in [(&four, &five), (&five, &four), (&z, &z)] {
            assert!(weighted(&z, &[c, d]).is_err(), "{:?} {:?}", c.dims(), d.dims());
        }
    }
}

//! The leading eigenpairs of a symmetric matrix A [n, n] by a block Krylov method (Musco and Musco, arXiv 1504.05477).
//!
//! A basis of [X, A X, A² X, ...] for a random X is made orthonormal; then come the eigenpairs of A in that space
//! (Rayleigh–Ritz); and so on from the best of them until the residuals ‖A y − θ y‖ are small. It uses only faer's
//! products, QR and small eigendecompositions, a bounded number of each: faer's own partial solver may repeat its
//! reorthogonalisation for ever if rounding in the last bit never satisfies it (0.24, `iterate_lanczos`).

use super::dense::multiply;
use super::eigen::eigen_in_place;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use rand::{Rng, SeedableRng};

/// Columns of X beyond those wanted.
const SPARE: usize = 8;
/// Powers of A in a basis, at most and at least.
const MOST_BLOCKS: usize = 8;
const LEAST_BLOCKS: usize = 3;
/// Number of bases after which a matrix is left to a full decomposition.
const ROUNDS: usize = 8;
/// Factor by which a round has to reduce the largest residual for another to be worth it.
const PROGRESS: f64 = 0.5;

/// The k eigenpairs of largest magnitude, largest first: values and vectors [n, k]. `None` if the space would be no
/// smaller than half of A's, or if `tolerance` (an absolute residual) is not reached.
pub fn leading(a: MatRef<f64>, k: usize, tolerance: f64, par: Par) -> Option<(Vec<f64>, Mat<f64>)> {
    let (n, width) = (a.nrows(), k + SPARE);
    let blocks = (n / 2 / width).min(MOST_BLOCKS);
    if blocks < LEAST_BLOCKS {
        return None;
    }
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    let mut start = Mat::<f64>::from_fn(n, width, |_, _| random.random_range(-1.0..1.0));
    let mut last = f64::INFINITY;
    for _ in 0..ROUNDS {
        let basis = basis(a, start, blocks, par);
        let image = multiply(a, basis.as_ref(), par);
        let projected = multiply(basis.transpose(), image.as_ref(), par);
        let (values, vectors) = eigen_in_place(projected, par).ok()?;
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|i, j| values[*j].abs().total_cmp(&values[*i].abs()));
        order.truncate(width);
        let chosen = Mat::from_fn(values.len(), width, |i, j| vectors[(i, order[j])]);
        let (ritz, image) =
            (multiply(basis.as_ref(), chosen.as_ref(), par), multiply(image.as_ref(), chosen.as_ref(), par));
        let residual = |j: usize| (image.col(j) - ritz.col(j) * faer::Scale(values[order[j]])).norm_l2();
        let worst = (0..k).map(residual).fold(0.0, f64::max);
        if worst <= tolerance {
            let values = order[..k].iter().map(|&i| values[i]).collect();
            return Some((values, ritz.subcols(0, k).to_owned()));
        }
        if worst.is_nan() || worst >= PROGRESS * last {
            return None;
        }
        (start, last) = (ritz, worst);
    }
    None
}

/// An orthonormal basis [n, blocks · width] of the powers of A on `start`.
fn basis(a: MatRef<f64>, start: Mat<f64>, blocks: usize, par: Par) -> Mat<f64> {
    let (n, width) = (start.nrows(), start.ncols());
    let mut basis = Mat::zeros(n, blocks * width);
    let mut block = orthonormal(start.as_ref());
    basis.as_mut().subcols_mut(0, width).copy_from(&block);
    for i in 1..blocks {
        let mut next = multiply(a, block.as_ref(), par);
        // What the basis already holds would drown what is new.
        let held = basis.subcols(0, i * width);
        let inner = multiply(held.transpose(), next.as_ref(), par);
        matmul(&mut next, Accum::Add, held, &inner, -1.0, par);
        block = orthonormal(next.as_ref());
        basis.as_mut().subcols_mut(i * width, width).copy_from(&block);
    }
    // Once A's rank is used up, a block consists of rounding; only together are the blocks certain to be orthonormal.
    orthonormal(basis.as_ref())
}

fn orthonormal(x: MatRef<f64>) -> Mat<f64> {
    x.qr().compute_thin_Q()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Q diag(values) Qᵀ for a random Q.
    fn symmetric(n: usize, value: impl Fn(usize) -> f64) -> Mat<f64> {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let q = orthonormal(Mat::<f64>::from_fn(n, n, |_, _| random.random_range(-1.0..1.0)).as_ref());
        let scaled = Mat::from_fn(n, n, |i, j| q[(i, j)] * value(j));
        &scaled * q.transpose()
    }

    #[test]
    fn finds_the_largest_of_either_sign() {
        let n = 300;
        // Alternating signs decreasing by a tenth; then a matrix of rank 5 only; then the identity, with all directions
        // alike.
        type Spectrum = fn(usize) -> f64;
        let spectra: [Spectrum; 3] = [
            |i| if i % 2 == 0 { 0.9f64.powi(i as i32) } else { -(0.9f64.powi(i as i32)) },
            |i| if i < 5 { 5.0 - i as f64 } else { 0.0 },
            |_| 1.0,
        ];
        for (case, value) in spectra.into_iter().enumerate() {
            let (values, vectors) = leading(symmetric(n, value).as_ref(), 12, 1e-9, Par::Seq).unwrap();
            for (i, found) in values.iter().enumerate() {
                assert!((found - value(i)).abs() < 1e-8, "spectrum {case}, value {i}: {found} {}", value(i));
            }
            let gram = vectors.transpose() * &vectors;
            assert!((gram - Mat::<f64>::identity(12, 12)).norm_l2() < 1e-10);
        }
    }

    /// The spectrum of noise has no gap to speak of after its 32nd value.
    #[test]
    fn noise_takes_rounds_but_not_for_ever() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let x = Mat::<f64>::from_fn(576, 576, |_, _| random.random_range(-1.0..1.0));
        let square = &x * x.transpose();
        let (values, _) = leading(square.as_ref(), 32, 1e-8 * square.norm_l2(), Par::Seq).unwrap();
        let (all, _) = eigen_in_place(square.clone(), Par::Seq).unwrap();
        for (found, exact) in values.iter().zip(all.iter().rev()) {
            assert!((found / exact - 1.0).abs() < 1e-10, "{found} {exact}");
        }
        // Unreachable, or too large a part of the whole: left to the full decomposition.
        assert!(leading(square.as_ref(), 32, 0.0, Par::Seq).is_none());
        assert!(leading(square.as_ref(), 200, 1.0, Par::Seq).is_none());
    }
}

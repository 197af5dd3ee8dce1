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

/// Columns of X where it is not known how many will be wanted.
const FIRST: usize = 16;
/// Columns of X beyond those wanted.
const SPARE: usize = 8;
/// Powers of A in a basis, at most and at least.
const MOST_BLOCKS: usize = 8;
const LEAST_BLOCKS: usize = 3;
/// Number of bases after which a matrix is left to a full decomposition.
const ROUNDS: usize = 8;
/// How well, relative to the share, the value after those above it has to be known if it is near.
const PRECISE: f64 = 0.01;
/// Factor by which a round has to reduce the largest residual for another to be worth it.
const PROGRESS: f64 = 0.5;

/// Which eigenpairs are wanted.
#[derive(Clone, Copy)]
pub enum Wanted {
    /// This many of largest magnitude.
    Count(usize),
    /// Those above `share` of the largest, of a positive semidefinite A, unless they are more than `most`.
    Above { share: f64, most: usize },
}

/// What was found, largest first.
pub struct Pairs {
    pub values: Vec<f64>,
    /// [n, k]
    pub vectors: Mat<f64>,
    /// A lower estimate of the next eigenvalue's magnitude; 0 if there is none.
    pub next: f64,
}

/// The wanted eigenpairs. `None` if there are none, if the space would be no smaller than half of A's, if `tolerance` (an absolute residual) is
/// not reached, or if those above a share are too many or take too long. How many they are is an estimate until the largest is known.
pub fn leading(a: MatRef<f64>, wanted: Wanted, tolerance: f64, par: Par) -> Option<Pairs> {
    let n = a.nrows();
    let mut width = SPARE
        + match wanted {
            Wanted::Count(k) => k,
            Wanted::Above { most, .. } => FIRST.min(most),
        };
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    let mut start = Mat::<f64>::from_fn(n, width, |_, _| random.random_range(-1.0..1.0));
    let (mut last, mut last_k, mut columns) = (f64::INFINITY, 0, 0);
    for _ in 0..ROUNDS {
        let blocks = (n / 2 / width).min(MOST_BLOCKS);
        columns += blocks * width;
        // Those above a share may have no gap after them, and then a full decomposition is sooner done.
        if blocks < LEAST_BLOCKS || (columns > n && matches!(wanted, Wanted::Above { .. })) {
            return None;
        }
        let basis = basis(a, start, blocks, par);
        let image = multiply(a, basis.as_ref(), par);
        let projected = multiply(basis.transpose(), image.as_ref(), par);
        let (values, vectors) = eigen_in_place(projected, par).ok()?;
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|i, j| values[*j].abs().total_cmp(&values[*i].abs()));
        let k = match wanted {
            Wanted::Count(k) => k,
            Wanted::Above { share, most } => {
                let largest = values[order[0]];
                let above = order.iter().take_while(|i| values[**i] > share * largest).count();
                if above > most {
                    return None;
                }
                above
            }
        };
        width = width.max(k + SPARE);
        order.truncate(width);
        let chosen = Mat::from_fn(values.len(), order.len(), |i, j| vectors[(i, order[j])]);
        let (ritz, image) =
            (multiply(basis.as_ref(), chosen.as_ref(), par), multiply(image.as_ref(), chosen.as_ref(), par));
        let residual = |j: usize| (image.col(j) - ritz.col(j) * faer::Scale(values[order[j]])).norm_l2();
        // A NaN stays, unlike with `f64::max`.
        let worst = (0..k).map(residual).fold(0.0, |most: f64, r| if most.is_nan() || r <= most { most } else { r });
        if k > 0 && worst <= tolerance && (k == order.len() || settled(wanted, &values, &order[..=k], residual(k))) {
            return Some(Pairs {
                values: order[..k].iter().map(|&i| values[i]).collect(),
                vectors: ritz.subcols(0, k).to_owned(),
                next: order.get(k).map_or(0.0, |i| values[*i].abs()),
            });
        }
        if k == 0 || worst.is_nan() || (k == last_k && worst > tolerance && worst >= PROGRESS * last) {
            return None;
        }
        (start, last, last_k) = (ritz, worst, k);
    }
    None
}

/// Whether the last of `order`, with its residual, is known well enough not to belong to those above the share.
fn settled(wanted: Wanted, values: &[f64], order: &[usize], residual: f64) -> bool {
    let (largest, next) = (values[order[0]], values[order[order.len() - 1]]);
    match wanted {
        Wanted::Count(_) => true,
        Wanted::Above { share, .. } => residual <= (share * largest - next).max(PRECISE * share * largest),
    }
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
            let found = leading(symmetric(n, value).as_ref(), Wanted::Count(12), 1e-9, Par::Seq).unwrap();
            let Pairs { values, vectors, next } = found;
            assert!((next - value(12).abs()).abs() < 1e-6, "spectrum {case}: the thirteenth is {next}");
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
        let near = |wanted, tolerance| leading(square.as_ref(), wanted, tolerance, Par::Seq);
        let values = near(Wanted::Count(32), 1e-8 * square.norm_l2()).unwrap().values;
        let (all, _) = eigen_in_place(square.clone(), Par::Seq).unwrap();
        for (found, exact) in values.iter().zip(all.iter().rev()) {
            assert!((found / exact - 1.0).abs() < 1e-10, "{found} {exact}");
        }
        // Unreachable, or too large a part of the whole: left to the full decomposition.
        assert!(near(Wanted::Count(32), 0.0).is_none());
        assert!(near(Wanted::Count(200), 1.0).is_none());
        let share = 0.5 * (all[576 - 36] + all[576 - 37]) / all[575];
        assert!(near(Wanted::Above { share, most: 35 }, 1e-8 * square.norm_l2()).is_none());
        // Few enough, but with no gap after them.
        assert!(near(Wanted::Above { share, most: 40 }, 1e-8 * square.norm_l2()).is_none());
    }

    /// More equal values than the first block has columns: none may be missed.
    #[test]
    fn counts_beyond_its_first_block() {
        let n = 700;
        for count in [1, 12, 30, 43] {
            let a = Mat::from_fn(n, n, |i, j| {
                if i != j {
                    0.0
                } else if i < count {
                    2.0
                } else {
                    1e-3 / (1.0 + i as f64)
                }
            });
            let wanted = Wanted::Above { share: 1e-2, most: 43 };
            let found = leading(a.as_ref(), wanted, 1e-9, Par::Seq).unwrap();
            assert_eq!(found.values.len(), count);
            assert!(found.next < 1e-3, "{}", found.next);
        }
        assert!(
            leading(Mat::<f64>::identity(n, n).as_ref(), Wanted::Above { share: 0.5, most: 43 }, 1e-9, Par::Seq)
                .is_none()
        );
    }
}

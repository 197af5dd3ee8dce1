//! The leading eigenpairs of a symmetric matrix A [n, n] by a block Krylov method (Musco and Musco, arXiv 1504.05477).
//!
//! An orthonormal basis of [X, A X, A² X, ...] for a random X grows block by block until the eigenpairs of A in that space
//! (Rayleigh–Ritz) have small residuals ‖A y − θ y‖; if it may not grow further, another begins with the best of them. It uses only
//! faer's products, QR and small eigendecompositions, a bounded number of each: faer's own partial solver may repeat its
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
/// Blocks of a basis, at most and at least.
const MOST_BLOCKS: usize = 8;
const LEAST_BLOCKS: usize = 3;
/// Number of bases after which a matrix is left to a full decomposition.
const ROUNDS: usize = 8;
/// How well, relative to the share, the value after those above it has to be known if it is near.
const PRECISE: f64 = 0.01;
/// Factor by which another power may raise the value after those wanted, if no more are to be taken.
const STEADY: f64 = 1.03;
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
        let mut space = Space::new(start.as_ref(), blocks);
        for _ in 1..LEAST_BLOCKS {
            space.grow(a, par);
        }
        // A gap after those wanted is often so wide that few powers will do for them, and some more for what comes next.
        let mut next = 0.0;
        let ritz = loop {
            space.grow(a, par);
            let ritz = space.ritz(wanted, par)?;
            let is_steady = ritz.next() <= STEADY * next;
            if (is_steady || space.is_full()) && ritz.is_found(wanted, tolerance) {
                return Some(ritz.into_pairs());
            }
            if space.is_full() {
                break ritz;
            }
            next = ritz.next();
        };
        let (k, worst) = (ritz.k, ritz.worst());
        if k == 0 || worst.is_nan() || (k == last_k && worst > tolerance && worst >= PROGRESS * last) {
            return None;
        }
        width = width.max(k + SPARE).min(ritz.values.len());
        (start, last, last_k) = (ritz.vectors.subcols(0, width).to_owned(), worst, k);
    }
    None
}

/// Eigenpairs of A in a space, by descending magnitude, of which the first k are wanted.
struct Ritz {
    values: Vec<f64>,
    /// [n, as many]
    vectors: Mat<f64>,
    /// ‖A y − θ y‖
    residuals: Vec<f64>,
    k: usize,
}

impl Ritz {
    /// The largest residual of those wanted. A NaN stays, unlike with `f64::max`.
    fn worst(&self) -> f64 {
        self.residuals[..self.k].iter().fold(0.0, |most: f64, r| if most.is_nan() || *r <= most { most } else { *r })
    }

    /// Whether the wanted ones are precise, and the one after them is known well enough not to belong to those above the share.
    fn is_found(&self, wanted: Wanted, tolerance: f64) -> bool {
        if self.k == 0 || self.worst().is_nan() || self.worst() > tolerance {
            return false;
        }
        let (Some(next), Some(residual)) = (self.values.get(self.k), self.residuals.get(self.k)) else { return true };
        match wanted {
            Wanted::Count(_) => true,
            Wanted::Above { share, .. } => {
                let least = share * self.values[0];
                *residual <= (least - next).max(PRECISE * least)
            }
        }
    }

    /// The magnitude of the one after those wanted.
    fn next(&self) -> f64 {
        self.values.get(self.k).map_or(0.0, |value| value.abs())
    }

    fn into_pairs(mut self) -> Pairs {
        let next = self.next();
        self.values.truncate(self.k);
        Pairs { vectors: self.vectors.subcols(0, self.k).to_owned(), values: self.values, next }
    }
}

/// An orthonormal basis of the powers of A on a block of columns, and what A makes of it.
struct Space {
    /// [n, blocks · width], of which the first columns are filled.
    basis: Mat<f64>,
    /// A basis
    image: Mat<f64>,
    width: usize,
    filled: usize,
}

impl Space {
    fn new(start: MatRef<f64>, blocks: usize) -> Self {
        let (n, width) = (start.nrows(), start.ncols());
        let mut image = Mat::zeros(n, blocks * width);
        let basis = image.clone();
        // Where the first block's image will be, so that it is what the first block is made of.
        image.as_mut().subcols_mut(0, width).copy_from(start);
        Self { basis, image, width, filled: 0 }
    }

    fn is_full(&self) -> bool {
        self.filled == self.basis.ncols()
    }

    /// Adds A times the last block, made orthonormal to what is there.
    fn grow(&mut self, a: MatRef<f64>, par: Par) {
        let (filled, width) = (self.filled, self.width);
        let mut block = self.image.subcols(filled.saturating_sub(width), width).to_owned();
        // Twice: what the basis already holds would drown what is new, and once A's rank is used up a block consists of rounding, whose
        // directions only the second pass makes orthogonal to the others.
        for _ in 0..2 {
            let held = self.basis.subcols(0, filled);
            let inner = multiply(held.transpose(), block.as_ref(), par);
            matmul(&mut block, Accum::Add, held, &inner, -1.0, par);
            block = orthonormal(block.as_ref());
        }
        let image = self.image.as_mut().subcols_mut(filled, width);
        matmul(image, Accum::Replace, a, &block, 1.0, par);
        self.basis.as_mut().subcols_mut(filled, width).copy_from(&block);
        self.filled += width;
    }

    /// The leading eigenpairs in the space (Rayleigh–Ritz): those wanted, and some more. `None` if those above a share are too many, or if the
    /// small decomposition fails.
    fn ritz(&self, wanted: Wanted, par: Par) -> Option<Ritz> {
        let (basis, image) = (self.basis.subcols(0, self.filled), self.image.subcols(0, self.filled));
        let (all, small) = eigen_in_place(multiply(basis.transpose(), image, par), par).ok()?;
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by(|i, j| all[*j].abs().total_cmp(&all[*i].abs()));
        let k = match wanted {
            Wanted::Count(k) => k,
            Wanted::Above { share, most } => {
                let above = order.iter().take_while(|i| all[**i] > share * all[order[0]]).count();
                if above > most {
                    return None;
                }
                above
            }
        };
        order.truncate(self.width.max(k + SPARE));
        let values: Vec<f64> = order.iter().map(|i| all[*i]).collect();
        let chosen = Mat::from_fn(all.len(), order.len(), |i, j| small[(i, order[j])]);
        let (vectors, image) = (multiply(basis, chosen.as_ref(), par), multiply(image, chosen.as_ref(), par));
        let residual = |(j, value): (usize, &f64)| (image.col(j) - vectors.col(j) * faer::Scale(*value)).norm_l2();
        let residuals = values.iter().enumerate().map(residual).collect();
        Some(Ritz { values, vectors, residuals, k })
    }
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

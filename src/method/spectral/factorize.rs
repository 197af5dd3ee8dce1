//! From one module's V [d_out, d_in] to the truncated factors of C = V Vᵀ / ‖V‖_F, with a certified residual.
//!
//! With n the smaller side of V, only its n × n square is formed, in f64:
//!   1. the square;
//!   2. its leading eigenvalues and their vectors: by block Krylov if they are few (k ≤ n / 16), which their sum may rule out and the
//!      method itself finds out, else a full eigendecomposition;
//!   3. U, orthonormal, rounded to the f32 that is stored; c_i = ‖Vᵀu_i‖² / ‖V‖_F for the rounded u_i; right vectors;
//!   4. the residual's bound ([`super::certify`]), which trusts none of the above.
//!
//! Steps 2 and 3 use f32 if the tolerance leaves room for its rounding (from [`COARSE`] on); for d_out > d_in only step
//! 3 does: there an error of U enters the bound itself, not just squared. Step 4 is always in f64.
//!
//! V is read again, and the square made again, rather than kept while step 2 or 4 needs the memory. Peak bytes,
//! m = 4 d_out d_in, q = n²: square m + 8 q; decomposition 32 q in f64, 16 q in f32 (which also stands in where the limit
//! asks for it, made orthonormal in f64), and 4 q for the square if it is kept meanwhile; certificate 2 m + 8 q and
//! what is kept of the factors for d_out ≤ d_in, else 2 m + 12 q.

use super::certify::{Hints, residual_left, residual_right};
use super::columns::{column_squares, descending, fix_signs, orthonormalize, reorder, row_major, store, unit_columns};
use super::dense::{View, for_each_product, gram_lower, multiply_f32};
use super::eigen::eigen_in_place;
use super::factors::Direction;
use super::krylov::{Pairs, Wanted};
use super::symmetric::{Packed, SMALL, Symmetric};
use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use faer::{Mat, Par};
use std::time::Instant;

/// How much of C is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keep {
    /// The fewest eigenpairs with residual ≤ tolerance · c_1: relative to C's own size, as ‖C‖ differs by orders of
    /// magnitude from module to module. 0 keeps every eigenvalue above f32 rounding.
    Tolerance(f64),
    /// This many eigenpairs, or as many as V has.
    Rank(usize),
}

/// A share of the tolerance is left for the certificate and for rounding; a larger one if the certificate fails.
const MARGINS: [f64; 4] = [0.98, 0.9, 0.5, 0.0];
/// Eigenvalues below this fraction of c_1 are f32 rounding of the largest.
const NOISE: f64 = f32::EPSILON as f64;
/// A left-out eigenvalue is taken as the residual's norm if it is above this fraction of c_1.
const SOLID: f64 = 1e-5;
/// From this tolerance on, factors are computed in f32. Its rounding leaves about 1e-5 of c_1 where there should be
/// zero, which enters the residual only as its square divided by the tolerance.
const COARSE: f64 = 1e-4;
/// What a Krylov space says of the eigenvalue after those kept, the highest of what may be a dense bulk, is a few per cent low.
const EDGE: f64 = 1.08;
/// Up to this size, f64 is cheap enough to use always.
const WIDE: usize = 256;
/// The partial solver is used for at most one eigenvalue in this many.
const PARTIAL_SHARE: usize = 16;

/// Seconds by kind of work.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Phases {
    pub read: f64,
    pub products: f64,
    pub eigen: f64,
    pub certify: f64,
}

/// How a module is factorized, and with how much memory.
pub struct Setting {
    pub keep: Keep,
    /// Bytes the work may take.
    pub memory: usize,
    pub par: Par,
}

impl Keep {
    /// Whether f32 is precise enough for the factors of a matrix of smaller side n, so that their products are summed in it.
    pub fn sums_in_f32(self, n: usize) -> bool {
        n > WIDE && matches!(self, Self::Tolerance(tolerance) if tolerance >= COARSE)
    }
}

/// The most bytes that the work on a module can use; less memory makes it slower.
pub fn useful_bytes(d_out: usize, d_in: usize, keep: Keep) -> usize {
    let (m, n) = (4 * d_out * d_in, d_out.min(d_in));
    let q = n * n;
    let certificate = if d_out <= d_in { 12 * q + 4 * n * (d_out + d_in) } else { 2 * m + 12 * q };
    let decomposition = if keep.sums_in_f32(n) && d_out <= d_in { 20 * q } else { 32 * q };
    (2 * m).max(m + 8 * q).max(decomposition).max(certificate)
}

impl Direction {
    /// The direction of V [d_out, d_in] itself, with R. For a V that is read, and memory that is short, [`factorize`].
    pub fn of(v: &Tensor, keep: Keep) -> Result<Self> {
        let values: Vec<f32> = v.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let setting = Setting { keep, memory: usize::MAX, par: Par::rayon(0) };
        factorize(&|| Ok(values.clone()), v.dims2()?, &setting).map(|(direction, _)| direction)
    }
}

/// Factorizes the V that `load` reads, row-major.
pub fn factorize(
    load: &dyn Fn() -> Result<Vec<f32>>,
    (d_out, d_in): (usize, usize),
    setting: &Setting,
) -> Result<(Direction, Phases)> {
    let mut work = Work { load, d_out, d_in, norm: 0.0, setting, phases: Phases::default() };
    let v = work.read()?;
    work.norm = v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if work.norm == 0.0 {
        return Ok((Direction::zero((d_out, d_in))?, work.phases));
    }
    let mut v = Some(v);
    for margin in MARGINS {
        let loaded = match v.take() {
            Some(v) => v,
            None => work.read()?,
        };
        let found = work.attempt(loaded, margin)?;
        let accepted = match setting.keep {
            Keep::Rank(_) => true,
            Keep::Tolerance(t) => {
                margin == 0.0 || t == 0.0 || f64::from(found.residual) <= t * f64::from(found.eigenvalues[0])
            }
        };
        if accepted {
            return Ok((found, work.phases));
        }
    }
    unreachable!("the last margin is accepted")
}

/// What the square yields.
struct Leading {
    /// Its leading eigenvectors [n, k], row-major, by descending eigenvalue.
    vectors: Vec<f32>,
    k: usize,
    /// The eigenvalue after them, or a little more, or 0.
    next: f64,
    /// The square itself, if there was room to keep it.
    square: Option<Packed>,
}

struct Work<'a> {
    load: &'a dyn Fn() -> Result<Vec<f32>>,
    d_out: usize,
    d_in: usize,
    norm: f64,
    setting: &'a Setting,
    phases: Phases,
}

impl Work<'_> {
    fn is_left(&self) -> bool {
        self.d_out <= self.d_in
    }

    fn is_coarse(&self) -> bool {
        self.setting.keep.sums_in_f32(self.small_side())
    }

    /// For the certificate of eigenvalues c.
    fn hints(&self, guess: f64, c: &[f32]) -> Hints {
        let goal = match self.setting.keep {
            Keep::Tolerance(tolerance) => tolerance * f64::from(c.first().copied().unwrap_or(0.0)),
            Keep::Rank(_) => 0.0,
        };
        Hints { guess, goal }
    }

    fn small_side(&self) -> usize {
        self.d_out.min(self.d_in)
    }

    fn read(&mut self) -> Result<Vec<f32>> {
        timed(&mut self.phases.read, || (self.load)())
    }

    fn view<'v>(&self, v: &'v [f32]) -> View<'v> {
        View::new(v, self.d_out, self.d_in)
    }

    /// The lower triangle of the smaller side's square over ‖V‖_F.
    fn square(&mut self, v: &[f32]) -> Mat<f64> {
        let view = View::new(v, self.d_out, self.d_in);
        let (left, norm, par) = (self.is_left(), self.norm, self.setting.par);
        timed(&mut self.phases.products, || gram_lower(view, !left, 1.0 / norm, par))
    }

    fn attempt(&mut self, v: Vec<f32>, margin: f64) -> Result<Direction> {
        let square = self.square(&v);
        drop(v);
        let mut eigen = self.phases.eigen;
        let leading = timed(&mut eigen, || self.eigenvectors(square, margin))?;
        self.phases.eigen = eigen;
        if self.is_left() { self.finish_left(leading) } else { self.finish_right(leading) }
    }

    /// The square's leading eigenvectors.
    fn eigenvectors(&self, square: Mat<f64>, margin: f64) -> Result<Leading> {
        let (n, par, memory) = (self.small_side(), self.setting.par, self.setting.memory);
        let mut square = Symmetric::from_lower(square);
        if let Some(Pairs { values, vectors, next }) = self.few(&mut square, margin) {
            let k = values.iter().filter(|value| **value > NOISE * values[0]).count();
            let next = self.raised(values.get(k).copied().unwrap_or(next), values[0]);
            let vectors = row_major(n, k, |i, j| vectors[(i, j)] as f32);
            return Ok(Leading { vectors, k, next, square: Some(square.into_packed()) });
        }
        let packed = square.into_packed();
        if 32 * n * n <= memory && !(self.is_coarse() && self.is_left()) {
            let square = packed.unpack::<f64>();
            drop(packed);
            let (values, vectors) = eigen_in_place(square, par)?;
            let (k, next) = self.kept(n, |i| values[n - 1 - i], margin);
            let vectors = row_major(n, k, |i, j| vectors[(i, n - 1 - j)] as f32);
            return Ok(Leading { vectors, k, next, square: None });
        }
        let narrow = packed.unpack::<f32>();
        let packed = (20 * n * n <= memory).then_some(packed);
        let (values, vectors) = eigen_in_place(narrow, par)?;
        let (k, next) = self.kept(n, |i| f64::from(values[n - 1 - i]), margin);
        let mut leading = row_major(n, k, |i, j| vectors[(i, n - 1 - j)]);
        drop(vectors);
        orthonormalize(&mut leading, n, k, par)?;
        Ok(Leading { vectors: leading, k, next, square: packed })
    }

    /// The eigenpairs to keep, if they are few compared with n.
    fn few(&self, square: &mut Symmetric, margin: f64) -> Option<Pairs> {
        let n = self.small_side();
        let most = n / PARTIAL_SHARE;
        let wanted = match self.setting.keep {
            _ if n <= SMALL => return None,
            Keep::Rank(rank) if rank == 0 || rank > most => return None,
            Keep::Rank(rank) => Wanted::Count(rank),
            Keep::Tolerance(tolerance) => {
                // Σλ = trace, and no λ is above λ_1, which is at most twice its estimate.
                let spread = square.trace() / (2.0 * square.rough_norm()) - tolerance * n as f64;
                if tolerance * margin == 0.0 || spread > most as f64 {
                    return None;
                }
                Wanted::Above { share: tolerance * margin, most }
            }
        };
        square.leading(wanted, self.norm * NOISE / 16.0, self.setting.par)
    }

    /// The eigenvalue after those kept, from a Krylov space's estimate of it: with some room where the tolerance has it, lest a certificate just
    /// miss it; 0 if it is rounding.
    fn raised(&self, next: f64, largest: f64) -> f64 {
        let room = match self.setting.keep {
            Keep::Tolerance(tolerance) => 0.95 * tolerance * largest,
            Keep::Rank(_) => f64::INFINITY,
        };
        match next {
            next if next <= SOLID * largest => 0.0,
            next if EDGE * next <= room => EDGE * next,
            next => next,
        }
    }

    /// The number of eigenpairs to keep, of n known ones in descending order, and the eigenvalue after them if it is
    /// more than rounding.
    fn kept(&self, n: usize, value: impl Fn(usize) -> f64, margin: f64) -> (usize, f64) {
        let above = |part: f64| (0..n).take_while(|i| value(*i) > part * value(0)).count();
        let k = match self.setting.keep {
            Keep::Rank(rank) => rank.min(above(NOISE)),
            Keep::Tolerance(tolerance) => above((tolerance * margin).max(NOISE)),
        };
        let next = if k < n { value(k) } else { 0.0 };
        (k, if next > SOLID * value(0) { next } else { 0.0 })
    }

    /// d_out ≤ d_in: the eigenvectors are U.
    fn finish_left(&mut self, found: Leading) -> Result<Direction> {
        let Leading { vectors: mut basis, k, next, square } = found;
        fix_signs(&mut basis, k);
        let v = self.read()?;
        let (mut right, mut c) = self.right_vectors(&v, &basis, k);
        let order = descending(&c);
        c = order.iter().map(|i| c[*i]).collect();
        reorder(&mut basis, &order);
        reorder(&mut right, &order);
        // Kept during the certificate if there is room, else computed again afterwards.
        if 12 * self.small_side().pow(2) + 4 * k * (self.d_out + self.d_in) > self.setting.memory {
            right = vec![];
        }
        let square = match square {
            Some(square) => {
                drop(v);
                square.unpack()
            }
            None => self.square(&v),
        };
        let (d_out, of, par, hints) = (self.d_out, (self.norm, self.d_in), self.setting.par, self.hints(next, &c));
        let residual =
            timed(&mut self.phases.certify, || residual_left(square, View::new(&basis, d_out, k), &c, of, hints, par));
        if right.is_empty() {
            let v = self.read()?;
            right = self.right_vectors(&v, &basis, k).0;
        }
        self.direction(basis, c, right, residual)
    }

    /// d_out > d_in: the eigenvectors are right singular vectors; U = V W / σ, made orthonormal.
    fn finish_right(&mut self, found: Leading) -> Result<Direction> {
        let Leading { vectors, k, next, .. } = found;
        let v = self.read()?;
        let (d_out, d_in, norm, par) = (self.d_out, self.d_in, self.norm, self.setting.par);
        let started = Instant::now();
        let mut basis = self.product(&v, false, View::new(&vectors, d_in, k)).0;
        unit_columns(&mut basis, k);
        orthonormalize(&mut basis, d_out, k, par)?;
        self.phases.products += started.elapsed().as_secs_f64();
        drop(vectors);
        fix_signs(&mut basis, k);
        let (mut right, mut c) = self.right_vectors(&v, &basis, k);
        let order = descending(&c);
        c = order.iter().map(|i| c[*i]).collect();
        reorder(&mut basis, &order);
        reorder(&mut right, &order);
        let hints = self.hints(next, &c);
        let residual = timed(&mut self.phases.certify, || {
            residual_right(v, View::new(&basis, d_out, k), View::new(&right, d_in, k), &c, norm, hints, par)
        });
        self.direction(basis, c, right, residual)
    }

    /// V B or VᵀB, row-major, and the squared lengths of its columns.
    fn product(&self, v: &[f32], transposed: bool, b: View) -> (Vec<f32>, Vec<f64>) {
        let (k, par) = (b.columns, self.setting.par);
        if self.is_coarse() {
            let out = multiply_f32(self.view(v), transposed, b, par);
            let squares = column_squares(&out, k);
            return (out, squares);
        }
        let mut squares = vec![0f64; k];
        let mut out = vec![0f32; k * if transposed { self.d_in } else { self.d_out }];
        for_each_product(self.view(v), transposed, b, par, |row, column, block| {
            for j in 0..block.ncols() {
                squares[column + j] += block.col_as_slice(j).iter().map(|x| x * x).sum::<f64>();
            }
            store(&mut out, k, row, column, block);
        });
        (out, squares)
    }

    /// VᵀU / σ [d_in, k] and c = σ² / ‖V‖_F, with σ_i = ‖Vᵀu_i‖.
    fn right_vectors(&mut self, v: &[f32], basis: &[f32], k: usize) -> (Vec<f32>, Vec<f32>) {
        let started = Instant::now();
        let (mut right, squares) = self.product(v, true, View::new(basis, self.d_out, k));
        let scales: Vec<f64> = squares.iter().map(|s| if *s > 0.0 { s.sqrt().recip() } else { 0.0 }).collect();
        for row in right.chunks_mut(k.max(1)) {
            for (value, scale) in row.iter_mut().zip(&scales) {
                *value = (f64::from(*value) * scale) as f32;
            }
        }
        self.phases.products += started.elapsed().as_secs_f64();
        (right, squares.iter().map(|s| (s / self.norm) as f32).collect())
    }

    fn direction(&self, basis: Vec<f32>, c: Vec<f32>, right: Vec<f32>, residual: f64) -> Result<Direction> {
        let (k, device) = (c.len(), &Device::Cpu);
        Ok(Direction {
            shape: (self.d_out, self.d_in),
            basis: Tensor::from_vec(basis, (self.d_out, k), device)?,
            right: Some(Tensor::from_vec(right, (self.d_in, k), device)?),
            eigenvalues: c,
            v_norm: self.norm as f32,
            // Rounded up, since it is an upper bound.
            residual: (residual as f32).next_up(),
        })
    }
}

fn timed<R>(seconds: &mut f64, work: impl FnOnce() -> R) -> R {
    let started = Instant::now();
    let result = work();
    *seconds += started.elapsed().as_secs_f64();
    result
}

//! One module's V [d_out, d_in] to the truncated factors of C = V Vᵀ / ‖V‖_F, with a certified residual.
//!
//! With n the smaller side of V, only its n × n square is formed, in f64:
//!   1. the square, then how many eigenvalues to keep: for a tolerance, by counting those above it (inertia);
//!   2. their vectors: block Krylov where they are few (k ≤ n / 16), else a full eigendecomposition of the square;
//!   3. U, orthonormal, rounded to the f32 that is stored; c_i = ‖Vᵀu_i‖² / ‖V‖_F for the rounded u_i; right vectors;
//!   4. the residual's bound ([`super::certify`]), which trusts none of the above.
//!
//! V is read again rather than kept while step 2 or 4 needs the memory. Peak bytes, m = 4 d_out d_in, q = n²: square
//! m + 8 q; decomposition 32 q in f64, or 16 q in f32 where the limit asks for it (then made orthonormal in f64);
//! certificate 2 m + 8 q for d_out ≤ d_in, else 2 m + 12 q.

use super::certify::{residual_left, residual_right};
use super::dense::{SMALL, Symmetric, View, eigen_in_place, for_each_product, gram_lower, orthonormalize};
use super::direction_file::ModuleDirection;
use anyhow::Result;
use faer::{Mat, Par};
use std::time::Instant;

/// The tolerance used where none is given.
pub const DEFAULT_TOLERANCE: f64 = 1e-3;

/// How much of C is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keep {
    /// The fewest eigenpairs with residual ≤ tolerance · c_1: relative to C's own size, as ‖C‖ differs by orders of
    /// magnitude from module to module. 0 keeps every eigenvalue above f32 rounding.
    Tolerance(f64),
    /// This many eigenpairs, or as many as V has.
    Rank(usize),
}

/// A share of the tolerance is left to the certificate and to rounding; more of it if the certificate fails.
const MARGINS: [f64; 4] = [0.98, 0.9, 0.5, 0.0];
/// Eigenvalues below this part of c_1 are f32 rounding of the largest.
const NOISE: f64 = f32::EPSILON as f64;
/// The partial solver is used for at most this part of the eigenvalues.
const PARTIAL_SHARE: usize = 16;

/// Seconds by kind of work.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Phases {
    pub read: f64,
    pub products: f64,
    pub eigen: f64,
    pub certify: f64,
}

/// How and within what a module is factorized.
pub struct Setting {
    pub keep: Keep,
    /// Bytes the work may take.
    pub memory: usize,
    pub par: Par,
}

/// Peak bytes of the work on a module when the decomposition is made in f64 (or f32).
pub fn peak_bytes(d_out: usize, d_in: usize, wide: bool) -> usize {
    let (m, q) = (4 * d_out * d_in, d_out.min(d_in).pow(2));
    let certificate = if d_out <= d_in { 2 * m + 8 * q } else { 2 * m + 12 * q };
    (2 * m).max(m + 8 * q).max(if wide { 32 * q } else { 16 * q }).max(certificate)
}

/// Factorizes the V that `load` reads, row-major.
pub fn factorize(
    load: &dyn Fn() -> Result<Vec<f32>>,
    (d_out, d_in): (usize, usize),
    setting: &Setting,
) -> Result<(ModuleDirection, Phases)> {
    let mut work = Work { load, d_out, d_in, norm: 0.0, setting, phases: Phases::default() };
    let v = work.read()?;
    work.norm = v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if work.norm == 0.0 {
        return Ok((ModuleDirection::zero(d_out, d_in), work.phases));
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

    fn attempt(&mut self, v: Vec<f32>, margin: f64) -> Result<ModuleDirection> {
        let square = self.square(&v);
        drop(v);
        let mut eigen = self.phases.eigen;
        let (vectors, k) = timed(&mut eigen, || self.eigenvectors(square, margin))?;
        self.phases.eigen = eigen;
        if self.is_left() { self.finish_left(vectors, k) } else { self.finish_right(vectors, k) }
    }

    /// The square's leading eigenvectors [n, k], row-major f32, by descending eigenvalue.
    fn eigenvectors(&self, square: Mat<f64>, margin: f64) -> Result<(Vec<f32>, usize)> {
        let (n, par) = (self.small_side(), self.setting.par);
        let mut square = Symmetric::from_lower(square);
        if let Some(k) = self.few(&mut square, margin) {
            let scale = self.norm * NOISE / 16.0;
            if let Some((values, vectors)) = square.leading(k, scale, par) {
                let k = values.iter().filter(|value| **value > NOISE * values[0]).count();
                return Ok((row_major(n, k, |i, j| vectors[(i, j)] as f32), k));
            }
        }
        let square = square.into_matrix();
        if 32 * n * n <= self.setting.memory {
            let (values, vectors) = eigen_in_place(square, par)?;
            let k = self.kept(n, |i| values[n - 1 - i], margin);
            Ok((row_major(n, k, |i, j| vectors[(i, n - 1 - j)] as f32), k))
        } else {
            let narrow = Mat::<f32>::from_fn(n, n, |i, j| square[(i, j)] as f32);
            drop(square);
            let (values, vectors) = eigen_in_place(narrow, par)?;
            let k = self.kept(n, |i| f64::from(values[n - 1 - i]), margin);
            let mut leading = row_major(n, k, |i, j| vectors[(i, n - 1 - j)]);
            drop(vectors);
            orthonormalize(&mut leading, n, k, par)?;
            Ok((leading, k))
        }
    }

    /// The number of eigenpairs to keep, if it is known to be small beside n.
    fn few(&self, square: &mut Symmetric, margin: f64) -> Option<usize> {
        let n = self.small_side();
        if n <= SMALL {
            return None;
        }
        let k = match self.setting.keep {
            Keep::Rank(rank) => rank.min(n),
            Keep::Tolerance(tolerance) if tolerance * margin > 0.0 => {
                let largest = square.norm_estimate(self.setting.par);
                square.count_above(tolerance * margin * largest, self.setting.par)
            }
            Keep::Tolerance(_) => n,
        };
        (k > 0 && k <= n / PARTIAL_SHARE).then_some(k)
    }

    /// The number of eigenpairs to keep, of n known ones, descending.
    fn kept(&self, n: usize, value: impl Fn(usize) -> f64, margin: f64) -> usize {
        let above = |part: f64| (0..n).take_while(|i| value(*i) > part * value(0)).count();
        match self.setting.keep {
            Keep::Rank(rank) => rank.min(above(NOISE)),
            Keep::Tolerance(tolerance) => above((tolerance * margin).max(NOISE)),
        }
    }

    /// d_out ≤ d_in: the eigenvectors are U.
    fn finish_left(&mut self, mut basis: Vec<f32>, k: usize) -> Result<ModuleDirection> {
        fix_signs(&mut basis, k);
        let v = self.read()?;
        // Kept through the certificate if there is room, else computed again after it.
        let beside = 4 * self.d_out * self.d_in + 8 * self.small_side().pow(2) + 4 * k * (self.d_out + self.d_in);
        let (mut right, mut c) = self.right_vectors(&v, &basis, k, beside <= self.setting.memory);
        let order = descending(&c);
        c = order.iter().map(|i| c[*i]).collect();
        reorder(&mut basis, &order);
        reorder(&mut right, &order);
        let square = self.square(&v);
        drop(v);
        let (d_out, d_in, norm, par) = (self.d_out, self.d_in, self.norm, self.setting.par);
        let residual =
            timed(&mut self.phases.certify, || residual_left(square, View::new(&basis, d_out, k), &c, norm, d_in, par));
        if right.is_empty() {
            let v = self.read()?;
            right = self.right_vectors(&v, &basis, k, true).0;
        }
        Ok(self.direction(basis, c, right, residual))
    }

    /// d_out > d_in: the eigenvectors are right singular vectors; U = V W / σ, made orthonormal.
    fn finish_right(&mut self, vectors: Vec<f32>, k: usize) -> Result<ModuleDirection> {
        let v = self.read()?;
        let (d_out, d_in, norm, par) = (self.d_out, self.d_in, self.norm, self.setting.par);
        let mut products = self.phases.products;
        let mut basis = timed(&mut products, || {
            let mut basis = vec![0f32; d_out * k];
            for_each_product(self.view(&v), false, View::new(&vectors, d_in, k), par, |row, column, block| {
                store(&mut basis, k, row, column, block);
            });
            unit_columns(&mut basis, k);
            orthonormalize(&mut basis, d_out, k, par)?;
            anyhow::Ok(basis)
        })?;
        self.phases.products = products;
        drop(vectors);
        fix_signs(&mut basis, k);
        let (mut right, mut c) = self.right_vectors(&v, &basis, k, true);
        let order = descending(&c);
        c = order.iter().map(|i| c[*i]).collect();
        reorder(&mut basis, &order);
        reorder(&mut right, &order);
        let residual = timed(&mut self.phases.certify, || {
            residual_right(v, View::new(&basis, d_out, k), View::new(&right, d_in, k), &c, norm, par)
        });
        Ok(self.direction(basis, c, right, residual))
    }

    /// VᵀU / σ [d_in, k] (empty unless `store_it`) and c = σ² / ‖V‖_F, with σ_i = ‖Vᵀu_i‖.
    fn right_vectors(&mut self, v: &[f32], basis: &[f32], k: usize, store_it: bool) -> (Vec<f32>, Vec<f32>) {
        let started = Instant::now();
        let mut right = vec![0f32; if store_it { self.d_in * k } else { 0 }];
        let mut squares = vec![0f64; k];
        let basis = View::new(basis, self.d_out, k);
        for_each_product(self.view(v), true, basis, self.setting.par, |row, column, block| {
            for j in 0..block.ncols() {
                squares[column + j] += block.col_as_slice(j).iter().map(|x| x * x).sum::<f64>();
            }
            if store_it {
                store(&mut right, k, row, column, block);
            }
        });
        let scales: Vec<f64> = squares.iter().map(|s| if *s > 0.0 { s.sqrt().recip() } else { 0.0 }).collect();
        for row in right.chunks_mut(k.max(1)) {
            for (value, scale) in row.iter_mut().zip(&scales) {
                *value = (f64::from(*value) * scale) as f32;
            }
        }
        self.phases.products += started.elapsed().as_secs_f64();
        (right, squares.iter().map(|s| (s / self.norm) as f32).collect())
    }

    fn direction(&self, basis: Vec<f32>, c: Vec<f32>, right: Vec<f32>, residual: f64) -> ModuleDirection {
        ModuleDirection {
            d_out: self.d_out,
            d_in: self.d_in,
            basis,
            eigenvalues: c,
            right_basis: right,
            v_norm: self.norm as f32,
            // Rounded up, as it is an upper bound.
            residual: (residual as f32).next_up(),
        }
    }
}

fn timed<R>(seconds: &mut f64, work: impl FnOnce() -> R) -> R {
    let started = Instant::now();
    let result = work();
    *seconds += started.elapsed().as_secs_f64();
    result
}

fn row_major(n: usize, k: usize, value: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let mut out = vec![0f32; n * k];
    for (i, row) in out.chunks_mut(k.max(1)).enumerate() {
        for (j, target) in row.iter_mut().enumerate() {
            *target = value(i, j);
        }
    }
    out
}

fn store(to: &mut [f32], k: usize, row0: usize, column0: usize, block: &Mat<f64>) {
    for i in 0..block.nrows() {
        let row = &mut to[(row0 + i) * k + column0..][..block.ncols()];
        for (j, target) in row.iter_mut().enumerate() {
            *target = block[(i, j)] as f32;
        }
    }
}

/// Scales columns to unit length.
fn unit_columns(values: &mut [f32], k: usize) {
    let mut squares = vec![0f64; k];
    for row in values.chunks(k.max(1)) {
        for (sum, value) in squares.iter_mut().zip(row) {
            *sum += f64::from(*value).powi(2);
        }
    }
    for row in values.chunks_mut(k.max(1)) {
        for (value, sum) in row.iter_mut().zip(&squares) {
            *value = (f64::from(*value) / sum.sqrt().max(f64::MIN_POSITIVE)) as f32;
        }
    }
}

/// Makes each column's entry of largest magnitude positive, as an eigenvector's sign is otherwise arbitrary.
fn fix_signs(values: &mut [f32], k: usize) {
    let mut most = vec![0f32; k];
    for row in values.chunks(k.max(1)) {
        for (most, value) in most.iter_mut().zip(row) {
            if value.abs() > most.abs() {
                *most = *value;
            }
        }
    }
    for row in values.chunks_mut(k.max(1)) {
        for (most, value) in most.iter().zip(row) {
            if *most < 0.0 {
                *value = -*value;
            }
        }
    }
}

/// The order that sorts `c` descending; rounding can swap near-equal neighbours.
fn descending(c: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..c.len()).collect();
    order.sort_by(|a, b| c[*b].total_cmp(&c[*a]));
    order
}

/// Permutes columns.
fn reorder(values: &mut [f32], order: &[usize]) {
    if order.windows(2).all(|pair| pair[0] < pair[1]) {
        return;
    }
    let mut old = vec![0f32; order.len()];
    for row in values.chunks_mut(order.len()) {
        old.copy_from_slice(row);
        for (target, from) in row.iter_mut().zip(order) {
            *target = old[*from];
        }
    }
}

//! Upper bounds on spectral norms that hold whatever produced the factors.
//!
//! An eigenvalue solver's answer bounds the largest eigenvalue from below, so it certifies nothing about what it
//! missed. Here a bound τ on ‖R‖₂, for symmetric R [n, n], is accepted only if Cholesky succeeds on both τI − R
//! and τI + R: if it runs to completion in floating point, the matrix plus some E with ‖E‖₂ ≤ γ_{n+1} / (1 − γ_{n+1})
//! trace is positive definite (Higham, Accuracy and Stability of Numerical Algorithms, theorem 10.3), and that much is
//! added to the bound. All arithmetic is f64; γ_m = m u / (1 − m u) with u = 2⁻⁵³.
//!
//! Where R is positive semidefinite but for rounding, which is bounded beside it, τI + R needs no such proof. Nor where R is little but for
//! a positive semidefinite matrix C beyond the span of few vectors U (k of them, R U = E): with x = U a + z, ‖x‖ = 1 and Uᵀz = 0,
//!     xᵀR x = zᵀC z + 2 zᵀE a + (U a)ᵀE a ≥ −(s² + 2 s t) ‖E‖_F / σ_min(U),  s = ‖U a‖, t = ‖z‖, s² + t² = 1,
//! and s² + 2 s t is at most (1 + √5) / 2: two thin products in place of a factorization.
//!
//! R depends on which side of V [d_out, d_in] is smaller, as only that side's square is ever formed. Below f = ‖V‖_F,
//! and U, c and W (the right basis) are the f32 values as stored.
//!
//! d_out ≤ d_in: R = V Vᵀ / f − U diag(c) Uᵀ, formed directly.
//!
//! d_out > d_in: for any X [d_in, k], with D = V − U Xᵀ,
//!     V Vᵀ / f − U diag(c) Uᵀ = (D Dᵀ + U (D X)ᵀ + (D X) Uᵀ) / f + U (XᵀX / f − diag(c)) Uᵀ,
//! whose norm is at most (‖DᵀD‖₂ + 2 ‖U‖₂ ‖D X‖_F) / f + ‖U‖₂² ‖XᵀX / f − diag(c)‖₂, and DᵀD is d_in × d_in. With
//! X = W diag(sqrt(c f)), near VᵀU, the last two terms are small. If every direction of V is kept, D is only rounding,
//! and ‖D‖_F gives the bounds needed: ‖DᵀD‖₂ ≤ ‖D‖_F², ‖D X‖_F ≤ ‖D‖_F ‖X‖₂. Nothing is assumed about U, c or W: if
//! they were poor, the bound would merely be large.

use super::dense::{
    View, add_lower, add_symmetric, for_each_column_panel, gram_lower, gram_lower_f32, multiply, panels,
};
use super::symmetric::Symmetric;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use std::ops::Range;

/// Factors by which a lower estimate of a norm is raised until the certificate holds.
const LADDER: [f64; 7] = [1.01, 1.03, 1.1, 1.3, 2.0, 4.0, 16.0];

/// (1 + √5) / 2, rounded up.
const GOLDEN: f64 = 1.6181;

/// R's negative part is bounded by products with U if U has at most one column to this many rows.
const FEW: usize = 16;

/// How near the goal a bound may come, leaving room for what is added to it.
const CLOSE: f64 = 1e-3;

/// γ_m.
fn gamma(m: usize) -> f64 {
    gamma_of(m, f64::EPSILON)
}

/// γ_m of an arithmetic with the given epsilon; infinite if it bounds nothing.
fn gamma_of(m: usize, epsilon: f64) -> f64 {
    let mu = m as f64 * epsilon / 2.0;
    if mu < 1.0 { mu / (1.0 - mu) } else { f64::INFINITY }
}

/// A guess at a norm, and what it should stay below (0 if unknown): tried first, they save an estimate.
#[derive(Clone, Copy, Default)]
pub struct Hints {
    pub guess: f64,
    pub goal: f64,
}

/// What is known of R's eigenvalues below 0.
#[derive(Clone, Copy)]
pub enum Below {
    Unknown,
    /// None is further from 0 than this.
    AtMost(f64),
}

/// An upper bound on ‖R‖₂ from R's lower triangle.
pub fn spectral_bound(r: Mat<f64>, below: Below, hints: Hints, par: Par) -> f64 {
    let n = r.nrows();
    let mut r = Symmetric::from_lower(r);
    let frobenius = r.frobenius() * (1.0 + gamma(n * n + 2));
    // trace(τI ± R) ≤ n τ + √n ‖R‖_F
    let bound = |tau: f64| tau + 2.0 * gamma(n + 1) * (n as f64 * tau + (n as f64).sqrt() * frobenius);
    if hints.guess > 0.0 {
        let hints = [LADDER[0] * hints.guess, (1.0 - CLOSE) * hints.goal];
        let mut worth = hints.into_iter().filter(|tau| *tau >= hints[0] && *tau < frobenius);
        if let Some(tau) = worth.find(|tau| is_bound(&mut r, *tau, below, par)) {
            return bound(tau);
        }
    }
    let estimate = r.norm_estimate(par);
    let mut steps = LADDER.map(|factor| estimate * factor).into_iter().take_while(|tau| *tau < frobenius);
    steps.find(|tau| is_bound(&mut r, *tau, below, par)).map_or(frobenius, bound)
}

/// Whether τI − R and τI + R are positive definite, by their Cholesky factors or by what is known.
fn is_bound(r: &mut Symmetric, tau: f64, below: Below, par: Par) -> bool {
    let known = matches!(below, Below::AtMost(least) if least <= tau);
    r.has_cholesky(-1.0, tau, par) && (known || r.has_cholesky(1.0, tau, par))
}

/// An upper bound on ‖C − U diag(c) Uᵀ‖₂ for d_out ≤ d_in. `square` is the lower triangle of C, computed from
/// `inner` = d_in products an entry; `hints` as for [`spectral_bound`].
pub fn residual_left(
    mut square: Mat<f64>,
    basis: View,
    c: &[f32],
    (norm, inner): (f64, usize),
    hints: Hints,
    par: Par,
) -> f64 {
    let mut kept = 0.0; // Σ c_i ‖u_i‖²
    for_each_column_panel(basis, |columns, panel| {
        let mut weighted = panel.clone();
        for j in 0..panel.ncols() {
            for (value, column) in weighted.col_as_slice_mut(j).iter_mut().zip(columns.clone()) {
                let weight = f64::from(c[column]);
                kept += weight * *value * *value;
                *value *= weight;
            }
        }
        add_lower(&mut square, weighted.transpose(), panel.as_ref(), -1.0, par);
    });
    let rounding = gamma(inner + c.len() + 8) * (norm + 2.0 * kept);
    let few = basis.columns <= basis.rows / FEW;
    let below = if few { below(&square, rounding, basis, par) } else { Below::Unknown };
    spectral_bound(square, below, hints, par) + rounding
}

/// For R's lower triangle, off by `rounding` in norm, R + U diag(c) Uᵀ being positive semidefinite.
fn below(r: &Mat<f64>, rounding: f64, basis: View, par: Par) -> Below {
    let (n, k) = (basis.rows, basis.columns);
    let smallest = 1.0 - departure(basis, par); // of UᵀU's eigenvalues
    if k == 0 {
        return Below::AtMost(0.0);
    }
    if smallest <= 0.0 {
        return Below::Unknown;
    }
    let u = basis.block_t(0..n, 0..k);
    let mut image = Mat::<f64>::zeros(n, k);
    add_symmetric(&mut image, r, u.transpose(), par);
    let off = (rounding + gamma(n + 2) * (2.0 * r.squared_norm_l2()).sqrt()) * u.norm_l2();
    Below::AtMost(GOLDEN * (image.norm_l2() + off) / smallest.sqrt())
}

/// An upper bound on ‖C − U diag(c) Uᵀ‖₂ for d_out > d_in; `hints` as for [`spectral_bound`].
pub fn residual_right(v: Vec<f32>, basis: View, right: View, c: &[f32], norm: f64, hints: Hints, par: Par) -> f64 {
    let (d_out, n, k) = (basis.rows, right.rows, c.len());
    let rest = rest(View::new(&v, d_out, n), basis, right, c, norm, par);
    drop(v);
    let mut inner = scaled_gram(right, c, norm, par); // XᵀX
    let (x_square, d_square) = (trace(&inner), rest.square);
    for j in 0..k {
        for value in &mut inner.col_as_slice_mut(j)[j..] {
            *value /= norm;
        }
        inner[(j, j)] -= f64::from(c[j]);
    }
    let u_square = 1.0 + departure(basis, par);
    // Rounding: e for D, and for each product γ times its factors' Frobenius norms.
    let g = gamma(d_out + n + k + 8);
    let (x, d) = (x_square.sqrt() * (1.0 + g), d_square.sqrt() * (1.0 + g));
    let e = g * (norm + (u_square * k as f64).sqrt() * x);
    let rounding = (2.0 * d * e + e * e + g * d * d + 2.0 * u_square * (g * d * x + e * x)) / norm
        + u_square * g * (2.0 * x * x / norm + f64::from(c.first().copied().unwrap_or(0.0)));
    let inner = spectral_bound(inner, Below::Unknown, Hints::default(), par);
    let (outer, coupling) = match rest.gram {
        Some((gram, coupling)) => (spectral_bound(gram, Below::AtMost(0.0), hints, par), coupling),
        None => (d_square / norm, d * ((f64::from(c[0]) + inner) * norm).sqrt()),
    };
    outer + 2.0 * u_square.sqrt() * coupling / norm + u_square * inner + rounding
}

fn trace(a: &Mat<f64>) -> f64 {
    (0..a.nrows()).map(|i| a[(i, i)]).sum()
}

/// Norms of D = V − U Xᵀ.
struct Rest {
    /// ‖D‖_F²
    square: f64,
    /// The lower triangle of DᵀD / f, and ‖D X‖_F. `None` if all of V is kept: D is then only rounding, and ‖D‖_F
    /// bounds both.
    gram: Option<(Mat<f64>, f64)>,
}

/// D, a panel of its rows at a time.
fn rest(v: View, basis: View, right: View, c: &[f32], norm: f64, par: Par) -> Rest {
    let n = right.rows;
    let all = c.len() == n;
    let mut gram = if all { Mat::new() } else { Mat::zeros(n, n) };
    let (mut square, mut coupling) = (0.0, 0.0);
    for rows in panels(v.rows, n) {
        let mut d = v.block_t(rows.clone(), 0..n); // Dᵀ [n, width]
        for columns in panels(right.columns, n) {
            let x = scaled_block_t(right, columns.clone(), c, norm); // Xᵀ [k', n]
            let u = basis.block_t(rows.clone(), columns); // Uᵀ [k', width]
            matmul(&mut d, Accum::Add, x.transpose(), &u, -1.0, par);
        }
        square += d.squared_norm_l2();
        if all {
            continue;
        }
        for columns in panels(right.columns, n) {
            let x = scaled_block_t(right, columns, c, norm);
            let product: Mat<f64> = multiply(x.as_ref(), d.as_ref(), par);
            coupling += product.squared_norm_l2();
        }
        add_lower(&mut gram, d.as_ref(), d.transpose(), 1.0 / norm, par);
    }
    Rest { square, gram: (!all).then_some((gram, f64::sqrt(coupling))) }
}

/// Columns of X = W diag(sqrt(c f)), transposed.
fn scaled_block_t(right: View, columns: Range<usize>, c: &[f32], norm: f64) -> Mat<f64> {
    let sigma: Vec<f64> = c[columns.clone()].iter().map(|c| (f64::from(*c) * norm).sqrt()).collect();
    let mut block = right.block_t(0..right.rows, columns);
    for j in 0..block.ncols() {
        for (value, sigma) in block.col_as_slice_mut(j).iter_mut().zip(&sigma) {
            *value *= sigma;
        }
    }
    block
}

/// The lower triangle of XᵀX [k, k].
fn scaled_gram(right: View, c: &[f32], norm: f64, par: Par) -> Mat<f64> {
    let mut gram = gram_lower(right, true, 1.0, par);
    for j in 0..c.len() {
        for i in j..c.len() {
            gram[(i, j)] *= (f64::from(c[i]) * norm).sqrt() * (f64::from(c[j]) * norm).sqrt();
        }
    }
    gram
}

/// A bound on ‖UᵀU − I‖_F: how far the columns of U are from orthonormal. Little depends on it, so f32 will do, with
/// its rounding of at most γ_m ‖u_i‖ ‖u_j‖ per entry included.
fn departure(basis: View, par: Par) -> f64 {
    let gram = gram_lower_f32(basis, par);
    let (mut sum, mut trace) = (0.0, 0.0);
    for j in 0..gram.ncols() {
        for (i, value) in gram.col_as_slice(j).iter().enumerate().skip(j) {
            let off = f64::from(*value) - f64::from(u8::from(i == j));
            sum += off * off * if i == j { 1.0 } else { 2.0 };
        }
        trace += f64::from(gram[(j, j)]);
    }
    let gamma = gamma_of(basis.rows + 1, f64::from(f32::EPSILON));
    (1.0 + 1e-9) * f64::sqrt(sum) + gamma / (1.0 - gamma).max(0.0) * trace
}

#[cfg(test)]
mod tests {
    use super::super::eigen::tests::random_symmetric;
    use super::*;
    use faer::Side;

    /// The leading k eigenvectors of a positive semidefinite C, well and badly computed, to any scale: what is said of R's negative part holds,
    /// and for good ones it is small.
    #[test]
    fn a_negative_part_is_bounded() {
        let (n, k) = (96, 5);
        let x = random_symmetric(n, 11);
        let c = &x * x.transpose();
        let eigen = c.self_adjoint_eigen(Side::Lower).unwrap();
        let values = eigen.S().column_vector();
        for error in [0.0, 1e-6, 1e-3, 0.05, 0.3] {
            let stray = random_symmetric(n, 12);
            let u: Vec<f32> = (0..n)
                .flat_map(|i| (0..k).map(move |j| (i, j)))
                .map(|(i, j)| (eigen.U()[(i, n - 1 - j)] + error * stray[(i, j)] / 10.0) as f32)
                .collect();
            let wide = Mat::<f64>::from_fn(n, k, |i, j| f64::from(u[i * k + j]));
            let scaled = Mat::from_fn(n, k, |i, j| wide[(i, j)] * values[n - 1 - j]);
            let r = &c - &scaled * wide.transpose();
            let least = -r.self_adjoint_eigenvalues(Side::Lower).unwrap()[0];
            let lower = Mat::from_fn(n, n, |i, j| if i >= j { r[(i, j)] } else { 0.0 });
            let Below::AtMost(bound) = below(&lower, 0.0, View::new(&u, n, k), Par::Seq) else {
                assert!(error > 0.1, "nothing is known at error {error}");
                continue;
            };
            assert!(bound >= least, "error {error}: {bound} does not bound {least}");
            assert!(error > 1e-6 || bound < 1e-5 * values[n - 1], "error {error}: {bound}");
        }
    }
}

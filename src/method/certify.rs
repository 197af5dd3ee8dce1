//! Upper bounds on spectral norms that hold whatever produced the factors.
//!
//! An eigenvalue solver's answer bounds the largest eigenvalue from below, so it certifies nothing about what it
//! missed. Here a bound τ on ‖R‖₂, for symmetric R [n, n], is accepted only when Cholesky succeeds on both τI − R and
//! τI + R: if it runs to its end in floating point, the matrix plus some E with ‖E‖₂ ≤ γ_{n+1} / (1 − γ_{n+1}) trace
//! is positive definite (Higham, Accuracy and Stability of Numerical Algorithms, theorem 10.3), and that much is added
//! to the bound. All arithmetic is f64; γ_m = m u / (1 − m u) with u = 2⁻⁵³.
//!
//! What R is depends on the smaller side of V [d_out, d_in], as only that side's square is ever formed. Below f = ‖V‖_F,
//! and U, c and W (the right basis) are the f32 values as stored.
//!
//! d_out ≤ d_in: R = V Vᵀ / f − U diag(c) Uᵀ, formed directly.
//!
//! d_out > d_in: for any X [d_in, k], with D = V − U Xᵀ,
//!     V Vᵀ / f − U diag(c) Uᵀ = (D Dᵀ + U (D X)ᵀ + (D X) Uᵀ) / f + U (XᵀX / f − diag(c)) Uᵀ,
//! whose norm is at most (‖DᵀD‖₂ + 2 ‖U‖₂ ‖D X‖_F) / f + ‖U‖₂² ‖XᵀX / f − diag(c)‖₂, and DᵀD is d_in × d_in. With
//! X = W diag(sqrt(c f)), near VᵀU, the last two terms are small. Nothing is assumed of U, c or W: were they poor, the
//! bound would just be large.

use super::dense::{Symmetric, View, add_lower, for_each_column_panel, gram_lower, multiply, panels};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use std::ops::Range;

/// Factors by which a lower estimate of a norm is raised until the certificate holds.
const LADDER: [f64; 7] = [1.01, 1.03, 1.1, 1.3, 2.0, 4.0, 16.0];

/// γ_m.
fn gamma(m: usize) -> f64 {
    let mu = m as f64 * f64::EPSILON / 2.0;
    mu / (1.0 - mu)
}

/// An upper bound on ‖R‖₂ from R's lower triangle.
pub fn spectral_bound(r: Mat<f64>, par: Par) -> f64 {
    let n = r.nrows();
    let mut r = Symmetric::from_lower(r);
    let frobenius = r.frobenius() * (1.0 + gamma(n * n + 2));
    let estimate = r.norm_estimate(par);
    for tau in LADDER.map(|factor| estimate * factor).into_iter().take_while(|tau| *tau < frobenius) {
        if r.has_cholesky(-1.0, tau, par) && r.has_cholesky(1.0, tau, par) {
            // trace(τI ± R) ≤ n τ + √n ‖R‖_F
            let trace = n as f64 * tau + (n as f64).sqrt() * frobenius;
            return tau + 2.0 * gamma(n + 1) * trace;
        }
    }
    frobenius
}

/// An upper bound on ‖C − U diag(c) Uᵀ‖₂ for d_out ≤ d_in. `square` is the lower triangle of C, computed from
/// `inner` = d_in products an entry.
pub fn residual_left(mut square: Mat<f64>, basis: View, c: &[f32], norm: f64, inner: usize, par: Par) -> f64 {
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
    spectral_bound(square, par) + rounding
}

/// An upper bound on ‖C − U diag(c) Uᵀ‖₂ for d_out > d_in.
pub fn residual_right(v: Vec<f32>, basis: View, right: View, c: &[f32], norm: f64, par: Par) -> f64 {
    let (d_out, n, k) = (basis.rows, right.rows, c.len());
    let (mut rest, coupling) = {
        let v = View::new(&v, d_out, n);
        rest_and_coupling(v, basis, right, c, norm, par)
    };
    drop(v);
    let mut inner = scaled_gram(right, c, norm, par); // XᵀX
    let (x_square, d_square) = (trace(&inner), trace(&rest));
    for j in 0..k {
        for value in &mut inner.col_as_slice_mut(j)[j..] {
            *value /= norm;
        }
        inner[(j, j)] -= f64::from(c[j]);
    }
    let u_square = 1.0 + departure(basis, par).1;
    // Rounding: of D by e, and of each product by γ times its factors' Frobenius norms.
    let g = gamma(d_out + n + k + 8);
    let (x, d) = (x_square.sqrt() * (1.0 + g), d_square.sqrt() * (1.0 + g));
    let e = g * (norm + (u_square * k as f64).sqrt() * x);
    let rounding = (2.0 * d * e + e * e + g * d * d + 2.0 * u_square * (g * d * x + e * x)) / norm
        + u_square * g * (2.0 * x * x / norm + f64::from(c.first().copied().unwrap_or(0.0)));
    for j in 0..n {
        for value in &mut rest.col_as_slice_mut(j)[j..] {
            *value /= norm;
        }
    }
    spectral_bound(rest, par)
        + 2.0 * u_square.sqrt() * coupling / norm
        + u_square * spectral_bound(inner, par)
        + rounding
}

fn trace(a: &Mat<f64>) -> f64 {
    (0..a.nrows()).map(|i| a[(i, i)]).sum()
}

/// The lower triangle of DᵀD, and ‖D X‖_F, for D = V − U Xᵀ, a panel of D's rows at a time.
fn rest_and_coupling(v: View, basis: View, right: View, c: &[f32], norm: f64, par: Par) -> (Mat<f64>, f64) {
    let n = right.rows;
    let mut rest = Mat::zeros(n, n);
    let mut coupling = 0.0;
    for rows in panels(v.rows, n) {
        let mut d = v.block_t(rows.clone(), 0..n); // Dᵀ [n, width]
        for columns in panels(right.columns, n) {
            let x = scaled_block_t(right, columns.clone(), c, norm); // Xᵀ [k', n]
            let u = basis.block_t(rows.clone(), columns); // Uᵀ [k', width]
            matmul(&mut d, Accum::Add, x.transpose(), &u, -1.0, par);
        }
        for columns in panels(right.columns, n) {
            let x = scaled_block_t(right, columns, c, norm);
            let product: Mat<f64> = multiply(x.as_ref(), d.as_ref(), par);
            coupling += product.squared_norm_l2();
        }
        add_lower(&mut rest, d.as_ref(), d.transpose(), 1.0, par);
    }
    (rest, coupling.sqrt())
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

/// How far the columns of U are from orthonormal: the largest entry of |UᵀU − I|, and its Frobenius norm.
pub fn departure(basis: View, par: Par) -> (f64, f64) {
    let gram = gram_lower(basis, true, 1.0, par);
    let (mut most, mut sum) = (0.0f64, 0.0);
    for j in 0..gram.ncols() {
        for (i, value) in gram.col_as_slice(j).iter().enumerate().skip(j) {
            let off = value - f64::from(u8::from(i == j));
            most = most.max(off.abs());
            sum += off * off * if i == j { 1.0 } else { 2.0 };
        }
    }
    (most, sum.sqrt())
}

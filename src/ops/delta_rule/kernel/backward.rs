//! The backward pass of one sequence and key head; the names are those of the formulas in delta_rule.rs.

use super::chunk::{Chunk, Inputs, Kept, Keys};
use crate::ops::attention::Span;
use crate::ops::delta_rule::shape::{CHUNK, Shape};
use crate::ops::delta_rule::slices::{
    add_scaled_rows, inner, multiply, row_products, rows_of, scale_rows, scaled_rows, solve,
};
use crate::ops::fast_math::vectorised;

/// The gradients of a task: of q and k [T, Dk], of v [T, heads of the group · Dv], of g and β [T, heads of the group].
pub struct Done {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub decay: Vec<f32>,
    pub beta: Vec<f32>,
}

/// dy: [N, Hv · Dv]
pub fn task(inputs: &Inputs, kept: &Kept, dy: &[f32], span: Span, head: usize) -> Done {
    let Shape { key_dim: dk, value_dim: dv, .. } = inputs.shape;
    let (group, length) = (inputs.shape.group(), span.q_len);
    let [q, k] = [(); 2].map(|()| vec![0f32; length * dk]);
    let [decay, beta] = [(); 2].map(|()| vec![0f32; length * group]);
    let mut done = Done { q, k, v: vec![0f32; length * group * dv], decay, beta };
    let (mut d_state, first) = (vec![0f32; group * dk * dv], vec![0f32; dk * dv]);
    for start in (0..length).step_by(CHUNK).rev() {
        let rows = CHUNK.min(length - start);
        let keys = inputs.keys(span.q_start + start, rows, head);
        let mut shared = Shared::new(rows, dk);
        for member in 0..group {
            let number = head * group + member;
            let side = Side {
                keys: &keys,
                chunk: inputs.chunk(&keys, number),
                state: match (start / CHUNK).checked_sub(1) {
                    Some(chunk) => &kept.states[(chunk * group + member) * dk * dv..][..dk * dv],
                    None => &first,
                },
                u: &kept.values[(start * group + member * rows) * dv..][..rows * dv],
                v: inputs.values(&keys, number),
                d_output: rows_at(dy, &keys, inputs.shape.value_width(), number * dv, dv),
                sizes: (rows, dk, dv),
            };
            let (dv_rows, d_decay, d_beta) = side.backward(&mut d_state[member * dk * dv..][..dk * dv], &mut shared);
            for t in 0..rows {
                let place = (start + t) * group + member;
                done.v[place * dv..][..dv].copy_from_slice(&dv_rows[t * dv..][..dv]);
                (done.decay[place], done.beta[place]) = (d_decay[t], d_beta[t]);
            }
        }
        let (dq, dk_rows) = shared.finish(&keys, dk);
        done.q[start * dk..][..rows * dk].copy_from_slice(&dq);
        done.k[start * dk..][..rows * dk].copy_from_slice(&dk_rows);
    }
    done
}

/// Columns of a chunk's rows of x: [N, width].
fn rows_at(x: &[f32], keys: &Keys, width: usize, start: usize, columns: usize) -> Vec<f32> {
    (keys.first..keys.first + keys.rows).flat_map(|row| &x[row * width + start..][..columns]).copied().collect()
}

/// What the heads of a group add up: the gradients of the normed q and k [rows, Dk], and of Q Kᵀ and K Kᵀ [rows, rows].
struct Shared {
    q: Vec<f32>,
    k: Vec<f32>,
    qk: Vec<f32>,
    kk: Vec<f32>,
}

impl Shared {
    fn new(rows: usize, dk: usize) -> Self {
        let [q, k] = [(); 2].map(|()| vec![0f32; rows * dk]);
        let [qk, kk] = [(); 2].map(|()| vec![0f32; rows * rows]);
        Self { q, k, qk, kk }
    }

    /// The gradients of q and k before their norms.
    fn finish(mut self, keys: &Keys, dk: usize) -> (Vec<f32>, Vec<f32>) {
        let (rows, square) = (keys.rows, (keys.rows, dk, keys.rows));
        multiply(square, rows_of(&self.qk, rows), rows_of(&keys.k, dk), &mut self.q, true);
        multiply(square, rows_of(&self.qk, rows).t(), rows_of(&keys.q, dk), &mut self.k, true);
        multiply(square, rows_of(&self.kk, rows), rows_of(&keys.k, dk), &mut self.k, true);
        multiply(square, rows_of(&self.kk, rows).t(), rows_of(&keys.k, dk), &mut self.k, true);
        // Of x̂ = f x with f = s / √(|x|² + ε): dx = f (dx̂ − x̂ ⟨x̂, dx̂⟩ / s²).
        for (d, x, factors, square) in
            [(&mut self.q, &keys.q, &keys.q_factors, dk as f32), (&mut self.k, &keys.k, &keys.k_factors, 1.0)]
        {
            let pulls: Vec<f32> = row_products(x, d, dk).iter().map(|product| -square * product).collect();
            add_scaled_rows(d, x, &pulls, dk);
            scale_rows(d, factors, dk);
        }
        (self.q, self.k)
    }
}

/// One value head's part of a chunk.
struct Side<'a> {
    keys: &'a Keys,
    chunk: Chunk,
    /// S: [Dk, Dv]
    state: &'a [f32],
    /// U, V and dO: [rows, Dv]
    u: &'a [f32],
    v: Vec<f32>,
    d_output: Vec<f32>,
    /// rows, Dk, Dv
    sizes: (usize, usize, usize),
}

impl Side<'_> {
    /// d_state: dS' -> dS; returns dV, dg and dβ.
    fn backward(&self, d_state: &mut [f32], shared: &mut Shared) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let ((rows, dk, dv), chunk, keys) = (self.sizes, &self.chunk, self.keys);
        let mut r = vec![0f32; rows * dv];
        multiply((rows, dv, dk), rows_of(&keys.k, dk), rows_of(d_state, dv), &mut r, false);
        scale_rows(&mut r, &chunk.until, dv);
        multiply((rows, dv, rows), rows_of(&chunk.p, rows).t(), rows_of(&self.d_output, dv), &mut r, true);
        solve(&chunk.l, rows, true, &mut r, dv);
        let g = scaled_rows(&r, &chunk.beta, dv);

        // Of e^(c_C − c) K, and of e^(c_C).
        let mut writing = vec![0f32; rows * dk];
        multiply((rows, dk, dv), rows_of(self.u, dv), rows_of(d_state, dv).t(), &mut writing, false);
        scale_rows(&mut writing, &chunk.until, dk);
        let d_whole = chunk.whole * inner(self.state, d_state);

        let reading = scaled_rows(&self.d_output, &chunk.since, dv);
        let mut taken = scaled_rows(&g, &chunk.since, dv);
        taken.iter_mut().for_each(|x| *x = -*x);
        d_state.iter_mut().for_each(|s| *s *= chunk.whole);
        multiply((dk, dv, rows), rows_of(&keys.q, dk).t(), rows_of(&reading, dv), d_state, true);
        multiply((dk, dv, rows), rows_of(&keys.k, dk).t(), rows_of(&taken, dv), d_state, true);

        let mut of_state = vec![0f32; rows * dk];
        multiply((rows, dk, dv), rows_of(&reading, dv), rows_of(self.state, dv).t(), &mut of_state, false);
        let mut d_sums = row_products(&of_state, &keys.q, dk);
        add(&mut shared.q, &of_state);
        multiply((rows, dk, dv), rows_of(&taken, dv), rows_of(self.state, dv).t(), &mut of_state, false);
        add(&mut d_sums, &row_products(&of_state, &keys.k, dk));
        add(&mut shared.k, &of_state);
        let written = row_products(&writing, &keys.k, dk);
        add(&mut shared.k, &writing);
        d_sums.iter_mut().zip(&written).for_each(|(sum, written)| *sum -= written);
        d_sums[rows - 1] += written.iter().sum::<f32>() + d_whole;

        let mut d_beta = self.read_gradient(&r);
        self.pairs(&r, &mut d_sums, &mut d_beta, shared);
        // g_t is in every sum from t on.
        let mut d_decay = d_sums;
        for t in (0..rows - 1).rev() {
            d_decay[t] += d_decay[t + 1];
        }
        (g, d_decay, d_beta)
    }

    /// rowsum(R ∘ (V − e^c K S))
    fn read_gradient(&self, r: &[f32]) -> Vec<f32> {
        let (rows, dk, dv) = self.sizes;
        let mut seen = vec![0f32; rows * dv];
        multiply((rows, dv, dk), rows_of(&self.keys.k, dk), rows_of(self.state, dv), &mut seen, false);
        scale_rows(&mut seen, &self.chunk.since, dv);
        let (all, seen) = (row_products(r, &self.v, dv), row_products(r, &seen, dv));
        all.iter().zip(seen).map(|(all, seen)| all - seen).collect()
    }

    /// What goes through P, L and D.
    fn pairs(&self, r: &[f32], d_sums: &mut [f32], d_beta: &mut [f32], shared: &mut Shared) {
        let ((rows, _, dv), chunk) = (self.sizes, &self.chunk);
        let [mut dp, mut dl] = [(); 2].map(|()| vec![0f32; rows * rows]);
        multiply((rows, rows, dv), rows_of(&self.d_output, dv), rows_of(self.u, dv).t(), &mut dp, false);
        multiply((rows, rows, dv), rows_of(r, dv), rows_of(self.u, dv).t(), &mut dl, false);
        vectorised!({
            for i in 0..rows {
                for j in 0..=i {
                    let place = i * rows + j;
                    let (dl, d) = (if j < i { -dl[place] } else { 0.0 }, chunk.pairs[place]);
                    shared.qk[place] += dp[place] * d;
                    shared.kk[place] += chunk.beta[i] * dl * d;
                    d_beta[i] += dl * self.keys.kk[place] * d;
                    let of_pair = dl * chunk.l[place] + dp[place] * chunk.p[place];
                    d_sums[i] += of_pair;
                    d_sums[j] -= of_pair;
                }
            }
        });
    }
}

fn add(sum: &mut [f32], x: &[f32]) {
    vectorised!(sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x));
}

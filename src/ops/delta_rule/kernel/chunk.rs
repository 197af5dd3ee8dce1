//! A chunk of a sequence as the kernel's two passes read it.

use crate::ops::delta_rule::shape::{EPS, Shape};
use crate::ops::delta_rule::slices::{inner, multiply, rows_of, scale_rows};
use crate::ops::fast_math::{exp, vectorised};

/// What a task keeps.
pub struct Kept {
    /// The states before its chunks but the first, which begins with zeros: [chunks − 1, heads of the group, Dk, Dv]
    pub states: Vec<f32>,
    /// U of its chunks: [chunks, heads of the group, C, Dv]
    pub values: Vec<f32>,
}

/// Where a task reads: mixed rows, g and β.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub shape: Shape,
    pub mixed: &'a [f32],
    pub decay: &'a [f32],
    pub beta: &'a [f32],
}

/// A chunk's rows, and what all heads of the group share.
pub struct Keys {
    pub first: usize,
    pub rows: usize,
    /// [rows, Dk], normed, and the factors that normed them
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub q_factors: Vec<f32>,
    pub k_factors: Vec<f32>,
    /// Q Kᵀ and K Kᵀ: [rows, rows]
    pub qk: Vec<f32>,
    pub kk: Vec<f32>,
}

impl<'a> Inputs<'a> {
    /// Columns `start..start + width` of some mixed rows.
    pub fn part(&self, first: usize, rows: usize, start: usize, width: usize) -> Vec<f32> {
        let all = self.shape.mixed_width();
        (first..first + rows).flat_map(|row| &self.mixed[row * all + start..][..width]).copied().collect()
    }

    pub fn keys(&self, first: usize, rows: usize, head: usize) -> Keys {
        let (d, keys) = (self.shape.key_dim, self.shape.key_heads * self.shape.key_dim);
        let normed = |start: usize, scale: f32| {
            let mut x = self.part(first, rows, start + head * d, d);
            let factors: Vec<f32> = x.chunks(d).map(|row| scale / (inner(row, row) + EPS).sqrt()).collect();
            scale_rows(&mut x, &factors, d);
            (x, factors)
        };
        let (q, q_factors) = normed(0, (d as f32).sqrt().recip());
        let (k, k_factors) = normed(keys, 1.0);
        let [mut qk, mut kk] = [(); 2].map(|()| vec![0f32; rows * rows]);
        for (x, products) in [(&q, &mut qk), (&k, &mut kk)] {
            multiply((rows, rows, d), rows_of(x, d), rows_of(&k, d).t(), products, false);
        }
        Keys { first, rows, q, k, q_factors, k_factors, qk, kk }
    }

    pub fn values(&self, keys: &Keys, head: usize) -> Vec<f32> {
        let Shape { key_heads, key_dim, value_dim, .. } = self.shape;
        self.part(keys.first, keys.rows, 2 * key_heads * key_dim + head * value_dim, value_dim)
    }

    pub fn chunk(&self, keys: &Keys, head: usize) -> Chunk {
        let heads = self.shape.value_heads;
        let column = |x: &[f32]| (keys.first..keys.first + keys.rows).map(|row| x[row * heads + head]).collect();
        Chunk::new(keys, column(self.decay), column(self.beta))
    }
}

/// What depends on a value head: decays, L and P.
pub struct Chunk {
    pub beta: Vec<f32>,
    /// e^c
    pub since: Vec<f32>,
    /// e^(c_C − c)
    pub until: Vec<f32>,
    /// e^(c_C)
    pub whole: f32,
    /// D: [rows, rows], zero above the diagonal
    pub pairs: Vec<f32>,
    /// [rows, rows]
    pub l: Vec<f32>,
    pub p: Vec<f32>,
}

impl Chunk {
    pub fn new(keys: &Keys, decay: Vec<f32>, beta: Vec<f32>) -> Self {
        let rows = keys.rows;
        let sums: Vec<f32> = decay
            .iter()
            .scan(0f32, |sum, g| {
                *sum += g;
                Some(*sum)
            })
            .collect();
        let last = sums.last().copied().unwrap_or(0.0);
        let [mut pairs, mut l, mut p] = [(); 3].map(|()| vec![0f32; rows * rows]);
        vectorised!({
            for i in 0..rows {
                let row = i * rows..i * rows + i + 1;
                let (pairs, l, p) = (&mut pairs[row.clone()], &mut l[row.clone()], &mut p[row.clone()]);
                pairs.iter_mut().zip(&sums).for_each(|(d, c)| *d = exp(sums[i] - c));
                for (((l, p), d), (kk, qk)) in
                    l.iter_mut().zip(p).zip(&*pairs).zip(keys.kk[row.clone()].iter().zip(&keys.qk[row]))
                {
                    *l = beta[i] * kk * d;
                    *p = qk * d;
                }
                l[i] = 0.0;
            }
        });
        let (since, until) = vectorised!({
            let since: Vec<f32> = sums.iter().map(|c| exp(*c)).collect();
            let until: Vec<f32> = sums.iter().map(|c| exp(last - c)).collect();
            (since, until)
        });
        Self { beta, since, until, whole: exp(last), pairs, l, p }
    }
}

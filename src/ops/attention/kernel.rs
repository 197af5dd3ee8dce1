//! The f32 CPU kernel: one task per (sequence, head), tiles of [`TILE`] queries against all the keys they see.
//!
//! Heads are read in place through GEMM strides. Each task owns its outputs (the backward goes by key head, since the
//! query heads of a group add to the same dk and dv), so the order of every sum is fixed.

use super::{Saved, Shape};
use crate::ops::fast_math::{exp, vectorised};
use crate::ops::gemm::{Matrix, product};
use crate::ops::with_f32;
use anyhow::Result;
use candle_core::Tensor;
use gemm::Parallelism;
use rayon::prelude::*;

/// Queries handled at once: a tile of scores is TILE × Tk.
const TILE: usize = 64;

/// Row lengths of the matrices and the causal offset.
#[derive(Clone, Copy)]
struct Sizes {
    tq: usize,
    tk: usize,
    /// Hq · D
    queries: usize,
    /// Hkv · D
    keys: usize,
    d: usize,
    /// Hq / Hkv
    group: usize,
    scale: f32,
}

impl Sizes {
    fn new(q: &Tensor, k: &Tensor, shape: Shape) -> Result<Self> {
        Ok(Self {
            tq: q.dim(0)? / shape.batch,
            tk: k.dim(0)? / shape.batch,
            queries: shape.heads * shape.head_dim,
            keys: shape.kv_heads * shape.head_dim,
            d: shape.head_dim,
            group: shape.heads / shape.kv_heads,
            scale: shape.scale as f32,
        })
    }

    /// The tiles of a sequence: first query, number of queries, number of keys that the last of them sees.
    fn tiles(self) -> impl Iterator<Item = (usize, usize, usize)> {
        (0..self.tq).step_by(TILE).map(move |first| {
            let rows = TILE.min(self.tq - first);
            (first, rows, first + rows + self.tk - self.tq)
        })
    }

    /// Number of keys that a query sees.
    fn seen(self, query: usize) -> usize {
        query + 1 + self.tk - self.tq
    }
}

pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor, shape: Shape) -> Result<(Tensor, Tensor)> {
    let s = Sizes::new(q, k, shape)?;
    let mut output = vec![0f32; q.elem_count()];
    let mut lse = vec![0f32; shape.batch * shape.heads * s.tq];
    let out = Matrix::write(&mut output, s.queries);
    with_f32([q, k, v], |[q, k, v]| {
        lse.par_chunks_mut(s.tq).enumerate().for_each(|(task, lse)| {
            let (b, h) = (task / shape.heads, task % shape.heads);
            let q = Matrix::read(q, 0, s.queries).at(b * s.tq, h * s.d);
            let k = Matrix::read(k, 0, s.keys).at(b * s.tk, h / s.group * s.d);
            let v = Matrix::read(v, 0, s.keys).at(b * s.tk, h / s.group * s.d);
            let out = out.at(b * s.tq, h * s.d);
            let mut tile = vec![0f32; TILE.min(s.tq) * s.tk];
            for (first, rows, seen) in s.tiles() {
                let scores = Matrix::write(&mut tile, seen);
                let none = Parallelism::None;
                // SAFETY: rows [first, first + rows) of this head and its keys, all inside q, k, v; the tile is ours.
                unsafe { product((rows, seen, s.d), q.at(first, 0), k.t(), scores, s.scale, false, none) };
                for (i, row) in tile.chunks_mut(seen).take(rows).enumerate() {
                    lse[first + i] = softmax(row, s.seen(first + i));
                }
                // SAFETY: as above; no other task writes this head's rows of the output.
                unsafe { product((rows, s.d, seen), scores, v, out.at(first, 0), 1.0, false, none) };
            }
        });
    })?;
    let lse = Tensor::from_vec(lse, (shape.batch, shape.heads, s.tq), q.device())?;
    Ok((Tensor::from_vec(output, q.shape(), q.device())?, lse))
}

/// Turns a row of scores into probabilities over its first `seen` keys and zeros; returns the log-sum-exp.
fn softmax(row: &mut [f32], seen: usize) -> f32 {
    let (row, hidden) = row.split_at_mut(seen);
    hidden.fill(0.0);
    vectorised(|| {
        let mut lanes = [f32::NEG_INFINITY; 16];
        for chunk in row.chunks(16) {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane = if x > *lane { x } else { *lane };
            }
        }
        let max = lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sums = [0f32; 16];
        for chunk in row.chunks_mut(16) {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *x = exp(*x - max);
                *sum += *x;
            }
        }
        let sum: f32 = sums.iter().sum();
        let inverse = 1.0 / sum;
        row.iter_mut().for_each(|x| *x *= inverse);
        max + sum.ln()
    })
}

pub fn backward(saved: &Saved, dy: &Tensor, shape: Shape) -> Result<(Tensor, Tensor, Tensor)> {
    let (q, k, v) = (&saved.q, &saved.k, &saved.v);
    let s = Sizes::new(q, k, shape)?;
    let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| vec![0f32; x.elem_count()]);
    let (dq_out, dk_out, dv_out) =
        (Matrix::write(&mut dq, s.queries), Matrix::write(&mut dk, s.keys), Matrix::write(&mut dv, s.keys));
    with_f32([q, k, v, &saved.output, dy, &saved.softmax], |[q, k, v, output, dy, lse]| {
        (0..shape.batch * shape.kv_heads).into_par_iter().for_each(|task| {
            let (b, kv) = (task / shape.kv_heads, task % shape.kv_heads);
            let place = (b * s.tk, kv * s.d);
            let (k, v) = (Matrix::read(k, 0, s.keys), Matrix::read(v, 0, s.keys));
            let keys = Keys {
                k: k.at(place.0, place.1),
                v: v.at(place.0, place.1),
                dk: dk_out.at(place.0, place.1),
                dv: dv_out.at(place.0, place.1),
            };
            let mut tiles = [(); 2].map(|()| vec![0f32; TILE.min(s.tq) * s.tk]);
            for h in kv * s.group..(kv + 1) * s.group {
                let start = b * s.tq * s.queries + h * s.d;
                let head = Head {
                    q: Matrix::read(q, start, s.queries),
                    dq: dq_out.at(b * s.tq, h * s.d),
                    output: &output[start..],
                    dy: &dy[start..],
                    lse: &lse[(b * shape.heads + h) * s.tq..][..s.tq],
                };
                backward_head(s, &head, &keys, &mut tiles);
            }
        });
    })?;
    let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device());
    Ok((tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?))
}

/// One key head of one sequence: what is read and what is added to.
struct Keys {
    k: Matrix,
    v: Matrix,
    dk: Matrix,
    dv: Matrix,
}

/// One query head of one sequence.
struct Head<'a> {
    q: Matrix,
    dq: Matrix,
    output: &'a [f32],
    dy: &'a [f32],
    lse: &'a [f32],
}

fn backward_head(s: Sizes, head: &Head, keys: &Keys, [tile_p, tile_ds]: &mut [Vec<f32>; 2]) {
    let dy = Matrix::read(head.dy, 0, s.queries);
    for (first, rows, seen) in s.tiles() {
        let (p, ds) = (Matrix::write(tile_p, seen), Matrix::write(tile_ds, seen));
        let (q, dy, none) = (head.q.at(first, 0), dy.at(first, 0), Parallelism::None);
        // SAFETY: rows of this head and keys that they see, inside the saved tensors; the tiles are this task's own.
        unsafe {
            product((rows, seen, s.d), q, keys.k.t(), p, s.scale, false, none);
            product((rows, seen, s.d), dy, keys.v.t(), ds, 1.0, false, none);
        }
        let pairs = tile_p.chunks_mut(seen).zip(tile_ds.chunks_mut(seen)).take(rows);
        for (i, (p, ds)) in pairs.enumerate() {
            let row = (first + i) * s.queries;
            let (output, dy) = (&head.output[row..row + s.d], &head.dy[row..row + s.d]);
            let inner: f32 = output.iter().zip(dy).map(|(o, dy)| o * dy).sum();
            softmax_backward(p, ds, s.seen(first + i), head.lse[first + i], inner);
        }
        // SAFETY: as above; this task alone writes these rows of dq and this key head of dk and dv.
        unsafe {
            product((rows, s.d, seen), ds, keys.k, head.dq.at(first, 0), s.scale, false, none);
            product((seen, s.d, rows), ds.t(), q, keys.dk, s.scale, true, none);
            product((seen, s.d, rows), p.t(), dy, keys.dv, 1.0, true, none);
        }
    }
}

/// In a row: scores -> probabilities (`p`), dP -> dS (`ds`); zeros past the keys that the query sees.
fn softmax_backward(p: &mut [f32], ds: &mut [f32], seen: usize, lse: f32, inner: f32) {
    p[seen..].fill(0.0);
    ds[seen..].fill(0.0);
    vectorised(|| {
        for (p, ds) in p[..seen].iter_mut().zip(&mut ds[..seen]) {
            *p = exp(*p - lse);
            *ds = *p * (*ds - inner);
        }
    });
}

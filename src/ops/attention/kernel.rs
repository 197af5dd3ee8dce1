//! The CPU kernel: one task per (span, head), tiles of [`TILE`] queries against all the keys they see.
//!
//! Heads are read in place through GEMM strides. Each task owns its outputs (the backward goes by key head, since the
//! query heads of a group add to the same dk and dv), so the order of every sum is fixed.

#![allow(unsafe_code, reason = "matrix products of heads read and written in place")]

use super::layout::Layout;
use super::saved::Saved;
use super::shape::{Shape, Span};
use crate::ops::dot::dot;
use crate::ops::fast_math::{exp, vectorised};
use crate::ops::gemm::product;
use crate::ops::matrix::Matrix;
use crate::ops::{output, softcap, with_f32};
use anyhow::Result;
use candle_core::{DType, Tensor};
use gemm::Parallelism;
use rayon::prelude::*;
use std::ops::Range;

/// Queries handled at once: a tile of scores is TILE × the keys that they see.
const TILE: usize = 64;

/// Multiplications of q kᵀ that one thread does on its own.
const SMALL_WORK: usize = 1 << 18;

/// Row lengths of the matrices.
#[derive(Clone, Copy)]
struct Sizes {
    shape: Shape,
    /// Hq · D
    queries: usize,
    /// Hkv · D
    keys: usize,
    d: usize,
    /// Hq / Hkv
    group: usize,
    scale: f32,
    cap: Option<f32>,
}

impl Sizes {
    fn new(shape: Shape) -> Self {
        Self {
            shape,
            queries: shape.heads * shape.head_dim,
            keys: shape.kv_heads * shape.head_dim,
            d: shape.head_dim,
            group: shape.heads / shape.kv_heads,
            scale: shape.scale as f32,
            cap: shape.cap.map(|cap| cap as f32),
        }
    }

    /// Keys that query `i` of a span sees.
    fn seen(self, span: Span, i: usize) -> Range<usize> {
        let end = i + 1 + span.k_len - span.q_len;
        self.shape.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    fn tiles(self, span: Span) -> impl Iterator<Item = Tile> {
        (0..span.q_len).step_by(TILE).map(move |first| {
            let rows = TILE.min(span.q_len - first);
            let keys = self.seen(span, first).start..self.seen(span, first + rows - 1).end;
            Tile { first, rows, keys }
        })
    }

    /// Values that the largest tile of a span takes.
    fn tile_len(self, span: Span) -> usize {
        self.tiles(span).map(|tile| tile.rows * tile.keys.len()).max().unwrap_or(0)
    }
}

/// Some queries of a span and the keys that any of them sees.
struct Tile {
    first: usize,
    rows: usize,
    keys: Range<usize>,
}

impl Tile {
    /// Columns of row `i` of the tile that its query sees.
    fn seen(&self, s: Sizes, span: Span, i: usize) -> Range<usize> {
        let seen = s.seen(span, self.first + i);
        seen.start - self.keys.start..seen.end - self.keys.start
    }
}

/// k, v and where the spans are in them: of half-precision rows, which are widened as a whole, only those that a span sees, unless
/// most are. A cache with room for long sequences has few such rows.
fn seen_rows(k: &Tensor, v: &Tensor, spans: &[Span]) -> Result<(Tensor, Tensor, Vec<Span>)> {
    let seen: usize = spans.iter().map(|span| span.k_len).sum();
    if k.dtype() == DType::F32 || seen == 0 || 2 * seen > k.dim(0)? {
        return Ok((k.clone(), v.clone(), spans.to_vec()));
    }
    let rows = |x: &Tensor| {
        let parts = spans.iter().map(|span| x.narrow(0, span.k_start, span.k_len));
        Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>()?, 0)
    };
    let starts = spans.iter().scan(0, |end, span| Some(std::mem::replace(end, *end + span.k_len)));
    let moved = spans.iter().zip(starts).map(|(span, k_start)| Span { k_start, ..*span }).collect();
    Ok((rows(k)?, rows(v)?, moved))
}

/// (o, log-sum-exp of every row)
pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor, shape: Shape, layout: &Layout) -> Result<(Tensor, Vec<f32>)> {
    let s = Sizes::new(shape);
    let (out, fresh) = Matrix::fresh(q.dim(0)?, s.queries);
    let (k, v, spans) = seen_rows(k, v, &layout.spans)?;
    let tasks: Vec<(Span, usize)> =
        spans.iter().flat_map(|&span| (0..shape.heads).map(move |head| (span, head))).collect();
    let lse: Vec<Vec<f32>> = with_f32([q, &k, &v], |[q, k, v]| {
        let task = |&(span, h): &(Span, usize)| {
            let keys = (span.k_start, h / s.group * s.d);
            let head = Forward {
                q: Matrix::read(q, 0, s.queries).at(span.q_start, h * s.d),
                k: Matrix::read(k, 0, s.keys).at(keys.0, keys.1),
                v: Matrix::read(v, 0, s.keys).at(keys.0, keys.1),
                out: out.at(span.q_start, h * s.d),
            };
            forward_head(s, span, &head)
        };
        // A few queries against a few keys take less time than waking a thread.
        let work: usize = spans.iter().map(|span| span.q_len * span.k_len * s.queries).sum();
        if work <= SMALL_WORK { tasks.iter().map(task).collect() } else { tasks.par_iter().map(task).collect() }
    })?;
    // SAFETY: every head of every span wrote its part, and the spans cover all rows of q.
    Ok((output(unsafe { fresh.filled() }, q.shape(), q)?, lse.concat()))
}

/// One query head of one span.
struct Forward {
    q: Matrix,
    k: Matrix,
    v: Matrix,
    out: Matrix,
}

/// Fills the head's output; returns the log-sum-exp of its rows.
fn forward_head(s: Sizes, span: Span, head: &Forward) -> Vec<f32> {
    if span.q_len == 1 {
        return vec![forward_query(s, span, head)];
    }
    let mut lse = Vec::with_capacity(span.q_len);
    let mut values = vec![0f32; s.tile_len(span)];
    for tile in s.tiles(span) {
        let width = tile.keys.len();
        let scores = Matrix::write(&mut values, width);
        let (q, k, v) = (head.q.at(tile.first, 0), head.k.at(tile.keys.start, 0), head.v.at(tile.keys.start, 0));
        // SAFETY: rows of this head and keys that they see, all inside q, k, v; the tile is this task's own.
        unsafe { product((tile.rows, width, s.d), q, k.t(), scores, s.scale, false, Parallelism::None) };
        for (i, row) in values.chunks_mut(width).take(tile.rows).enumerate() {
            lse.push(softmax(row, tile.seen(s, span, i), s.cap));
        }
        // Taken again: using `values` invalidated the earlier pointer.
        let (scores, out) = (Matrix::write(&mut values, width), head.out.at(tile.first, 0));
        // SAFETY: as above; no other task writes this head's rows of the output.
        unsafe { product((tile.rows, s.d, width), scores, v, out, 1.0, false, Parallelism::None) };
    }
    lse
}

/// As [`forward_head`] for a single query, as in generation: dot products rather than GEMMs of one row.
fn forward_query(s: Sizes, span: Span, head: &Forward) -> f32 {
    let seen = s.seen(span, 0);
    let (k, v) = (head.k.at(seen.start, 0), head.v.at(seen.start, 0));
    // SAFETY: this head's part of the only row of q, and of the output, which only this task writes.
    let (q, out) = unsafe { (head.q.row(0, s.d), head.out.row_mut(0, s.d)) };
    let mut scores = vec![0f32; seen.len()];
    for (j, score) in scores.iter_mut().enumerate() {
        // SAFETY: this head's part of a key that the query sees.
        *score = s.scale * dot(unsafe { k.row(j, s.d) }, q, |x| x);
    }
    let lse = softmax(&mut scores, 0..seen.len(), s.cap);
    out.fill(0.0);
    vectorised!({
        for (j, p) in scores.iter().enumerate() {
            // SAFETY: as for the keys.
            for (out, v) in out.iter_mut().zip(unsafe { v.row(j, s.d) }) {
                *out += p * v;
            }
        }
    });
    lse
}

/// Turns a row of scores into probabilities over the keys `seen` and zeros elsewhere; returns the log-sum-exp.
fn softmax(row: &mut [f32], seen: Range<usize>, cap: Option<f32>) -> f32 {
    row[..seen.start].fill(0.0);
    row[seen.end..].fill(0.0);
    let row = &mut row[seen];
    if let Some(cap) = cap {
        vectorised!(row.iter_mut().for_each(|x| *x = softcap::cap(*x, cap)));
    }
    vectorised!({
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

pub fn backward(
    saved: &Saved,
    lse: &[f32],
    dy: &Tensor,
    shape: Shape,
    layout: &Layout,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (q, k, v) = (&saved.q, &saved.k, &saved.v);
    let s = Sizes::new(shape);
    let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| vec![0f32; x.elem_count()]);
    let (dq_out, dk_out, dv_out) =
        (Matrix::write(&mut dq, s.queries), Matrix::write(&mut dk, s.keys), Matrix::write(&mut dv, s.keys));
    // Without a query there are no rows to start from.
    let spans = layout.spans.iter().filter(|span| span.q_len > 0);
    let tasks: Vec<(Span, usize)> = spans.flat_map(|&span| (0..shape.kv_heads).map(move |kv| (span, kv))).collect();
    with_f32([q, k, v, &saved.output, dy], |[q, k, v, output, dy]| {
        tasks.par_iter().for_each(|&(span, kv)| {
            let place = (span.k_start, kv * s.d);
            let (k, v) = (Matrix::read(k, 0, s.keys), Matrix::read(v, 0, s.keys));
            let keys = Keys {
                k: k.at(place.0, place.1),
                v: v.at(place.0, place.1),
                dk: dk_out.at(place.0, place.1),
                dv: dv_out.at(place.0, place.1),
            };
            let mut tiles = [(); 2].map(|()| vec![0f32; s.tile_len(span)]);
            for h in kv * s.group..(kv + 1) * s.group {
                let start = span.q_start * s.queries + h * s.d;
                let head = Head {
                    q: Matrix::read(q, start, s.queries),
                    dq: dq_out.at(span.q_start, h * s.d),
                    output: &output[start..],
                    dy: &dy[start..],
                    lse: &lse[shape.heads * span.q_start + h * span.q_len..][..span.q_len],
                };
                backward_head(s, span, &head, &keys, &mut tiles);
            }
        });
    })?;
    Ok((output(dq, q.shape(), q)?, output(dk, k.shape(), k)?, output(dv, v.shape(), v)?))
}

/// One key head of one span: what is read and what is accumulated.
struct Keys {
    k: Matrix,
    v: Matrix,
    dk: Matrix,
    dv: Matrix,
}

/// One query head of one span.
struct Head<'a> {
    q: Matrix,
    dq: Matrix,
    output: &'a [f32],
    dy: &'a [f32],
    lse: &'a [f32],
}

fn backward_head(s: Sizes, span: Span, head: &Head, keys: &Keys, [tile_p, tile_ds]: &mut [Vec<f32>; 2]) {
    let dy = Matrix::read(head.dy, 0, s.queries);
    for tile in s.tiles(span) {
        let (rows, width, none) = (tile.rows, tile.keys.len(), Parallelism::None);
        let (p, ds) = (Matrix::write(tile_p, width), Matrix::write(tile_ds, width));
        let (q, dy) = (head.q.at(tile.first, 0), dy.at(tile.first, 0));
        let [k, v, dk, dv] = [keys.k, keys.v, keys.dk, keys.dv].map(|x| x.at(tile.keys.start, 0));
        // SAFETY: rows of this head and keys that they see, inside the saved tensors; the tiles are this task's own.
        unsafe {
            product((rows, width, s.d), q, k.t(), p, s.scale, false, none);
            product((rows, width, s.d), dy, v.t(), ds, 1.0, false, none);
        }
        let pairs = tile_p.chunks_mut(width).zip(tile_ds.chunks_mut(width)).take(rows);
        for (i, (p, ds)) in pairs.enumerate() {
            let row = (tile.first + i) * s.queries;
            let (output, dy) = (&head.output[row..row + s.d], &head.dy[row..row + s.d]);
            let inner = dot(output, dy, |o| o);
            softmax_backward(p, ds, tile.seen(s, span, i), head.lse[tile.first + i], inner, s.cap);
        }
        // Taken again: using the tiles invalidated the earlier pointers.
        let (p, ds) = (Matrix::read(tile_p, 0, width), Matrix::read(tile_ds, 0, width));
        // SAFETY: as above; this task alone writes these rows of dq and this key head of dk and dv.
        unsafe {
            product((rows, s.d, width), ds, k, head.dq.at(tile.first, 0), s.scale, false, none);
            product((width, s.d, rows), ds.t(), q, dk, s.scale, true, none);
            product((width, s.d, rows), p.t(), dy, dv, 1.0, true, none);
        }
    }
}

/// One row: scores -> probabilities (`p`), dP -> dS (`ds`); zeros at the keys that the query does not see.
fn softmax_backward(p: &mut [f32], ds: &mut [f32], seen: Range<usize>, lse: f32, inner: f32, cap: Option<f32>) {
    for x in [&mut *p, &mut *ds] {
        x[..seen.start].fill(0.0);
        x[seen.end..].fill(0.0);
    }
    let (p, ds) = (&mut p[seen.clone()], &mut ds[seen]);
    match cap {
        None => vectorised!({
            for (p, ds) in p.iter_mut().zip(ds) {
                *p = exp(*p - lse);
                *ds = *p * (*ds - inner);
            }
        }),
        Some(cap) => vectorised!({
            for (p, ds) in p.iter_mut().zip(ds) {
                let score = softcap::cap(*p, cap);
                *p = exp(score - lse);
                *ds = *p * (*ds - inner) * softcap::slope(score, cap);
            }
        }),
    }
}

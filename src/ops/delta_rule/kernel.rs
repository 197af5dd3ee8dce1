//! The CPU kernel: one task for each sequence and key head, with the value heads that read it; chunks one after another.
//!
//! Each task owns what it computes, so the order of every sum is fixed; rows are put together afterwards.

mod backward;
mod chunk;

pub use chunk::Kept;

use super::shape::{CHUNK, Shape};
use super::slices::{multiply, rows_of, scale_rows, scaled_rows, solve};
use crate::ops::attention::Span;
use crate::ops::{output, with_f32};
use anyhow::Result;
use candle_core::{DType, Tensor};
use chunk::Inputs;
use rayon::prelude::*;

/// The rows of every task, put together.
struct Tasks<'a> {
    spans: &'a [Span],
    shape: Shape,
}

impl Tasks<'_> {
    fn run<T: Send>(&self, task: impl Fn(usize, Span, usize) -> T + Sync) -> Vec<T> {
        let heads = self.shape.key_heads;
        let all = 0..self.spans.len() * heads;
        let one = |number: usize| task(number, self.spans[number / heads], number % heads);
        all.into_par_iter().map(one).collect()
    }

    /// Fills rows of `width` values by `fill`, given the number of the row's first task and its place in the sequence.
    fn rows(&self, width: usize, fill: impl Fn(&mut [f32], usize, usize) + Sync) -> Vec<f32> {
        let spans = self.spans.iter().enumerate();
        let places: Vec<(usize, usize)> =
            spans.flat_map(|(number, span)| (0..span.q_len).map(move |t| (number * self.shape.key_heads, t))).collect();
        let mut out = vec![0f32; places.len() * width];
        out.par_chunks_mut(width).zip(&places).for_each(|(row, &(task, t))| fill(row, task, t));
        out
    }
}

pub fn forward(
    [mixed, decay, beta]: [&Tensor; 3],
    shape: Shape,
    spans: &[Span],
    before: Option<&Tensor>,
) -> Result<(Tensor, Tensor, Vec<Kept>)> {
    let group = shape.group();
    let (tasks, state) = (Tasks { spans, shape }, group * shape.key_dim * shape.value_dim);
    let before = match before {
        Some(before) => before.to_dtype(DType::F32)?.flatten_all()?.contiguous()?,
        None => Tensor::zeros(spans.len() * shape.state_len(), DType::F32, mixed.device())?,
    };
    let done = with_f32([mixed, decay, beta, &before], |[mixed, decay, beta, before]| {
        let inputs = Inputs { shape, mixed, decay, beta };
        tasks.run(|number, span, head| forward_task(&inputs, span, head, before[number * state..][..state].to_vec()))
    })?;
    let width = group * shape.value_dim;
    let rows = tasks.rows(shape.value_width(), |row, first, t| {
        for (part, done) in row.chunks_mut(width).zip(&done[first..]) {
            part.copy_from_slice(&done.output[t * width..][..width]);
        }
    });
    let after: Vec<f32> = done.iter().flat_map(|done| &done.state).copied().collect();
    let after = Tensor::from_vec(after, (spans.len(), shape.state_len()), mixed.device())?;
    let output = output(rows, (mixed.dim(0)?, shape.value_width()), mixed)?;
    Ok((output, after, done.into_iter().map(|done| done.kept).collect()))
}

/// What a task of the forward pass returns.
struct Done {
    /// [T, heads of the group · Dv]
    output: Vec<f32>,
    /// [heads of the group, Dk, Dv]
    state: Vec<f32>,
    kept: Kept,
}

fn forward_task(inputs: &Inputs, span: Span, head: usize, mut state: Vec<f32>) -> Done {
    let Shape { key_dim: dk, value_dim: dv, .. } = inputs.shape;
    let group = inputs.shape.group();
    let mut output = vec![0f32; span.q_len * group * dv];
    let mut kept = Kept { states: vec![], values: vec![] };
    for start in (0..span.q_len).step_by(CHUNK) {
        let rows = CHUNK.min(span.q_len - start);
        let keys = inputs.keys(span.q_start + start, rows, head);
        if start > 0 {
            kept.states.extend(&state);
        }
        for (member, state) in state.chunks_mut(dk * dv).enumerate() {
            let chunk = inputs.chunk(&keys, head * group + member);
            let mut u = inputs.values(&keys, head * group + member);
            let mut seen = vec![0f32; rows * dv];
            multiply((rows, dv, dk), rows_of(&keys.k, dk), rows_of(state, dv), &mut seen, false);
            scale_rows(&mut seen, &chunk.since, dv);
            u.iter_mut().zip(&seen).for_each(|(u, seen)| *u -= seen);
            scale_rows(&mut u, &chunk.beta, dv);
            solve(&chunk.l, rows, false, &mut u, dv);
            let mut o = seen;
            multiply((rows, dv, dk), rows_of(&keys.q, dk), rows_of(state, dv), &mut o, false);
            scale_rows(&mut o, &chunk.since, dv);
            multiply((rows, dv, rows), rows_of(&chunk.p, rows), rows_of(&u, dv), &mut o, true);
            state.iter_mut().for_each(|s| *s *= chunk.whole);
            let until = scaled_rows(&keys.k, &chunk.until, dk);
            multiply((dk, dv, rows), rows_of(&until, dk).t(), rows_of(&u, dv), state, true);
            for (t, o) in o.chunks(dv).enumerate() {
                output[((start + t) * group + member) * dv..][..dv].copy_from_slice(o);
            }
            kept.values.extend(u);
        }
    }
    Done { output, state, kept }
}

pub fn backward(
    [mixed, decay, beta]: [&Tensor; 3],
    kept: &[Kept],
    dy: &Tensor,
    shape: Shape,
    spans: &[Span],
) -> Result<[Tensor; 3]> {
    let tasks = Tasks { spans, shape };
    let done = with_f32([mixed, decay, beta, dy], |[mixed, decay, beta, dy]| {
        let inputs = Inputs { shape, mixed, decay, beta };
        tasks.run(|number, span, head| backward::task(&inputs, &kept[number], dy, span, head))
    })?;
    let (group, dk, keys) = (shape.group(), shape.key_dim, shape.key_heads * shape.key_dim);
    let width = group * shape.value_dim;
    let d_mixed = tasks.rows(shape.mixed_width(), |row, first, t| {
        let (queries, rest) = row.split_at_mut(keys);
        let (key_part, values) = rest.split_at_mut(keys);
        for (head, done) in done[first..][..shape.key_heads].iter().enumerate() {
            queries[head * dk..][..dk].copy_from_slice(&done.q[t * dk..][..dk]);
            key_part[head * dk..][..dk].copy_from_slice(&done.k[t * dk..][..dk]);
            values[head * width..][..width].copy_from_slice(&done.v[t * width..][..width]);
        }
    });
    let gate = |of: fn(&backward::Done) -> &[f32]| {
        tasks.rows(shape.value_heads, |row, first, t| {
            for (part, done) in row.chunks_mut(group).zip(&done[first..]) {
                part.copy_from_slice(&of(done)[t * group..][..group]);
            }
        })
    };
    let (d_decay, d_beta) = (gate(|done| &done.decay), gate(|done| &done.beta));
    let gate = |values: Vec<f32>| Tensor::from_vec(values, decay.shape(), decay.device());
    Ok([output(d_mixed, mixed.shape(), mixed)?, gate(d_decay)?, gate(d_beta)?])
}

//! The body for any device, in candle's operations: sequences padded to whole chunks and computed together, all but the passage of
//! the state from chunk to chunk for all chunks at once.
//!
//! Shapes: Z = sequences · Hv, n chunks of C positions. Padding has k = 0, β = 0 and g = 0, which changes no state. The inverse of
//! I + L is made of those of its diagonal blocks, of 1, 2, 4 … rows: as stable as substitution.

use super::shape::{CHUNK, EPS, Shape};
use crate::ops::attention::Span;
use anyhow::{Context, Result};
use candle_core::{D, DType, Device, Tensor};

/// What the backward pass needs.
pub struct Kept {
    /// The states before the chunks: [Z, n, Dk, Dv]
    states: Tensor,
    /// U: [Z, n, C, Dv]
    values: Tensor,
}

/// Maps between rows and the padded chunks of all sequences.
struct Places {
    sequences: usize,
    chunks: usize,
    /// C
    chunk: usize,
    shape: Shape,
    /// The row of each place, row 0 for padding: [sequences · n · C]
    pad: Tensor,
    /// 1 for a row of the sequence, 0 for padding: [sequences · n · C, 1], f32
    own: Tensor,
    /// The place of each row: [N]
    unpad: Tensor,
}

impl Places {
    fn new(spans: &[Span], shape: Shape, device: &Device) -> Result<Self> {
        let longest = spans.iter().map(|span| span.q_len).max().unwrap_or(0).max(1);
        let chunk = CHUNK.min(longest.next_power_of_two());
        let chunks = longest.div_ceil(chunk);
        let places = spans.len() * chunks * chunk;
        let (mut pad, mut own, mut unpad) = (vec![0u32; places], vec![0f32; places], vec![]);
        for (number, span) in spans.iter().enumerate() {
            for t in 0..span.q_len {
                let place = number * chunks * chunk + t;
                (pad[place], own[place]) = ((span.q_start + t) as u32, 1.0);
                unpad.push(place as u32);
            }
        }
        let own = Tensor::from_vec(own, (places, 1), device)?;
        let [pad, unpad] = [pad, unpad].map(|numbers| Tensor::new(numbers, device));
        Ok(Self { sequences: spans.len(), chunks, chunk, shape, pad: pad?, own, unpad: unpad? })
    }

    /// Columns of rows, of `heads` heads -> [Z, n, C, columns of a head], each head as often as it is read
    fn split(&self, x: &Tensor, (start, width): (usize, usize), heads: usize) -> Result<Tensor> {
        let x = x.narrow(1, start, width)?.to_dtype(DType::F32)?.contiguous()?.index_select(&self.pad, 0)?;
        let (d, times) = (width / heads, self.shape.value_heads / heads);
        let x = x.broadcast_mul(&self.own)?.reshape((self.sequences, (), heads, 1, d))?;
        let x = x.broadcast_as((self.sequences, self.chunks * self.chunk, heads, times, d))?;
        let x = x.permute((0, 2, 3, 1, 4))?.contiguous()?;
        Ok(x.reshape((self.sequences * self.shape.value_heads, self.chunks, self.chunk, d))?)
    }

    /// The inverse, with the sum over what was read of a head: [Z, n, C, d] -> [N, heads · d] in f32
    fn merge(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let (d, times) = (x.dim(D::Minus1)?, self.shape.value_heads / heads);
        let x = x.reshape((self.sequences, heads, times, self.chunks * self.chunk, d))?.sum(2)?;
        let x = x.transpose(1, 2)?.contiguous()?.reshape(((), heads * d))?;
        Ok(x.index_select(&self.unpad, 0)?)
    }
}

/// Everything but states and values.
struct Prepared {
    places: Places,
    /// [Z, n, C, Dk], normed, and the factors that normed them [Z, n, C, 1]
    q: Tensor,
    k: Tensor,
    q_factors: Tensor,
    k_factors: Tensor,
    /// [Z, n, C, Dv]
    v: Tensor,
    /// [Z, n, C, 1]
    beta: Tensor,
    /// e^c and e^(c_C − c): [Z, n, C, 1]; e^(c_C): [Z, n, 1, 1]
    since: Tensor,
    until: Tensor,
    whole: Tensor,
    /// D, K Kᵀ ∘ D below the diagonal, P, and the inverse of I + L: [Z, n, C, C]
    pairs: Tensor,
    kk: Tensor,
    p: Tensor,
    inverse: Tensor,
    /// 1 below the diagonal: [C, C]
    below: Tensor,
}

/// [C, C] of 1 where `keep(i, j)` and 0 elsewhere.
fn mask(chunk: usize, device: &Device, keep: impl Fn(usize, usize) -> bool) -> Result<Tensor> {
    let values = (0..chunk * chunk).map(|place| f32::from(u8::from(keep(place / chunk, place % chunk))));
    Ok(Tensor::from_vec(values.collect::<Vec<_>>(), (chunk, chunk), device)?)
}

fn normed(x: &Tensor, scale: f64) -> Result<(Tensor, Tensor)> {
    let factors = ((x.sqr()?.sum_keepdim(D::Minus1)? + f64::from(EPS))?.sqrt()?.recip()? * scale)?;
    Ok((x.broadcast_mul(&factors)?, factors))
}

impl Prepared {
    fn new([mixed, decay, beta]: [&Tensor; 3], shape: Shape, spans: &[Span]) -> Result<Self> {
        let device = mixed.device();
        let places = Places::new(spans, shape, device)?;
        let Shape { key_heads, value_heads, key_dim, .. } = shape;
        let (keys, chunk) = (key_heads * key_dim, places.chunk);
        let (q, q_factors) = normed(&places.split(mixed, (0, keys), key_heads)?, (key_dim as f64).powf(-0.5))?;
        let (k, k_factors) = normed(&places.split(mixed, (keys, keys), key_heads)?, 1.0)?;
        let v = places.split(mixed, (2 * keys, shape.value_width()), value_heads)?;
        let beta = places.split(beta, (0, value_heads), value_heads)?;
        let decay = places.split(decay, (0, value_heads), value_heads)?;
        // Sums over the positions so far, by a product with a matrix of ones.
        let below = mask(chunk, device, |i, j| j < i)?;
        let so_far = mask(chunk, device, |i, j| j <= i)?;
        let sums = so_far.broadcast_as((decay.dim(0)?, places.chunks, chunk, chunk))?.contiguous()?.matmul(&decay)?;
        let last = sums.narrow(2, chunk - 1, 1)?;
        // No power of what is above the diagonal, which may be too large.
        let hidden = ((1.0 - &so_far)? * -1e30)?;
        let pairs = sums.broadcast_sub(&sums.transpose(2, 3)?)?.broadcast_add(&hidden)?.minimum(0f32)?.exp()?;
        let p = (q.matmul(&k.transpose(2, 3)?)? * &pairs)?;
        let kk = (k.matmul(&k.transpose(2, 3)?)? * &pairs)?.broadcast_mul(&below)?;
        let inverse = inverse(&kk.broadcast_mul(&beta)?, chunk)?;
        Ok(Self {
            since: sums.exp()?,
            until: last.broadcast_sub(&sums)?.exp()?,
            whole: last.exp()?,
            places,
            q,
            k,
            q_factors,
            k_factors,
            v,
            beta,
            pairs,
            kk,
            p,
            inverse,
            below,
        })
    }
}

/// (I + L)⁻¹ of strictly lower L: [Z, n, C, C]. With the inverses X of diagonal blocks of s rows, and B what lies between two
/// neighbours, those of 2 s rows are X − X B X.
fn inverse(l: &Tensor, chunk: usize) -> Result<Tensor> {
    let eye = mask(chunk, l.device(), |i, j| i == j)?;
    let mut x = eye.broadcast_as(l.shape())?.contiguous()?;
    let mut size = 1;
    while size < chunk {
        let between = mask(chunk, l.device(), |i, j| i / (2 * size) == j / (2 * size) && i / size > j / size)?;
        let b = l.broadcast_mul(&between)?;
        x = (&x - x.matmul(&b)?.matmul(&x)?)?;
        size *= 2;
    }
    Ok(x)
}

/// Chunk `i` of x: [Z, n, …] -> [Z, …]
fn at(x: &Tensor, i: usize) -> Result<Tensor> {
    Ok(x.narrow(1, i, 1)?.squeeze(1)?.contiguous()?)
}

pub fn forward(
    inputs: [&Tensor; 3],
    shape: Shape,
    spans: &[Span],
    before: Option<&Tensor>,
) -> Result<(Tensor, Tensor, Kept)> {
    let mixed = inputs[0];
    let w = Prepared::new(inputs, shape, spans)?;
    let of_state = (spans.len() * shape.value_heads, shape.key_dim, shape.value_dim);
    let mut state = match before {
        Some(before) => before.to_dtype(DType::F32)?.reshape(of_state)?,
        None => Tensor::zeros(of_state, DType::F32, mixed.device())?,
    };
    let fresh = w.inverse.matmul(&w.v.broadcast_mul(&w.beta)?)?;
    let taken = w.inverse.matmul(&w.k.broadcast_mul(&(&w.beta * &w.since)?)?)?;
    let (reading, writing) = (w.q.broadcast_mul(&w.since)?, w.k.broadcast_mul(&w.until)?.transpose(2, 3)?);
    let (mut states, mut values, mut outputs) = (vec![], vec![], vec![]);
    for i in 0..w.places.chunks {
        let u = (at(&fresh, i)? - at(&taken, i)?.matmul(&state)?)?;
        outputs.push((at(&reading, i)?.matmul(&state)? + at(&w.p, i)?.matmul(&u)?)?);
        let next = (state.broadcast_mul(&at(&w.whole, i)?)? + at(&writing, i)?.matmul(&u)?)?;
        states.push(std::mem::replace(&mut state, next));
        values.push(u);
    }
    let output = w.places.merge(&Tensor::stack(&outputs, 1)?, shape.value_heads)?.to_dtype(mixed.dtype())?;
    let kept = Kept { states: Tensor::stack(&states, 1)?, values: Tensor::stack(&values, 1)? };
    Ok((output, state.reshape((spans.len(), shape.state_len()))?, kept))
}

pub fn backward(inputs: [&Tensor; 3], kept: &Kept, dy: &Tensor, shape: Shape, spans: &[Span]) -> Result<[Tensor; 3]> {
    let w = Prepared::new(inputs, shape, spans)?;
    let (states, u) = (&kept.states, &kept.values);
    let d_output = w.places.split(dy, (0, shape.value_width()), shape.value_heads)?;
    let (d_states, r) = w.passage(states, &d_output)?;
    let g = r.broadcast_mul(&w.beta)?;
    let across = |a: &Tensor, b: &Tensor| Ok::<_, anyhow::Error>(a.matmul(&b.transpose(2, 3)?.contiguous()?)?);
    let rowsum = |x: Tensor| x.sum_keepdim(D::Minus1);

    let dp = (across(&d_output, u)? * &w.pairs)?;
    let dl = across(&r, u)?.broadcast_mul(&w.below)?.neg()?;
    let seen = w.k.matmul(states)?.broadcast_mul(&w.since)?;
    let d_beta = (rowsum((&r * (&w.v - &seen)?)?)? + rowsum((&dl * &w.kk)?)?)?;
    let dm = (dl.broadcast_mul(&w.beta)? * &w.pairs)?;

    let of_q = across(&d_output, states)?.broadcast_mul(&w.since)?;
    let of_k = across(&g, states)?.broadcast_mul(&w.since)?;
    let writing = across(u, &d_states)?.broadcast_mul(&w.until)?;
    let dq = (&of_q + dp.matmul(&w.k)?)?;
    let both = (&dm + dm.transpose(2, 3)?)?;
    let dk = (((&writing - &of_k)? + dp.transpose(2, 3)?.contiguous()?.matmul(&w.q)?)? + both.matmul(&w.k)?)?;

    // Of c: pairs i, j with i's sign, j's opposite one; what reads the state; what is written to it; and e^(c_C).
    let through = ((&dm * w.k.matmul(&w.k.transpose(2, 3)?)?)? + (&dp * w.q.matmul(&w.k.transpose(2, 3)?)?)?)?;
    let written = rowsum((&writing * &w.k)?)?;
    let reads = (rowsum((&of_q * &w.q)?)? - rowsum((&of_k * &w.k)?)?)?;
    let d_sums = ((rowsum(through.clone())? - through.sum_keepdim(2)?.transpose(2, 3)?)? + (reads - &written)?)?;
    let d_whole = ((states * &d_states)?.sum_keepdim(D::Minus1)?.sum_keepdim(2)? * &w.whole)?;
    let at_end = (written.sum_keepdim(2)? + d_whole)?;
    // g_t is in every sum from t on, so e^(c_C) adds to all.
    let from = mask(w.places.chunk, dy.device(), |i, j| j >= i)?;
    let from = from.broadcast_as(w.pairs.shape())?.contiguous()?;
    let d_decay = from.matmul(&d_sums)?.broadcast_add(&at_end)?;
    w.merged(dq, dk, g, d_decay, d_beta, inputs[0].dtype())
}

impl Prepared {
    /// dS' of every chunk [Z, n, Dk, Dv], and R [Z, n, C, Dv].
    fn passage(&self, states: &Tensor, d_output: &Tensor) -> Result<(Tensor, Tensor)> {
        let own = self.p.transpose(2, 3)?.contiguous()?.matmul(d_output)?;
        let writing = self.k.broadcast_mul(&self.until)?;
        let turned = self.inverse.transpose(2, 3)?.contiguous()?;
        let reading = self.q.broadcast_mul(&self.since)?.transpose(2, 3)?.contiguous()?.matmul(d_output)?;
        let taken = self.k.broadcast_mul(&(&self.since * &self.beta)?)?.transpose(2, 3)?;
        let mut d_state = at(states, 0)?.zeros_like()?;
        let (mut all, mut rs) = (vec![], vec![]);
        for i in (0..self.places.chunks).rev() {
            let du = (at(&own, i)? + at(&writing, i)?.matmul(&d_state)?)?;
            let r = at(&turned, i)?.matmul(&du)?;
            let back = (at(&reading, i)? - at(&taken, i)?.matmul(&r)?)?;
            let earlier = (d_state.broadcast_mul(&at(&self.whole, i)?)? + back)?;
            all.push(std::mem::replace(&mut d_state, earlier));
            rs.push(r);
        }
        all.reverse();
        rs.reverse();
        all.first().context("a sequence has at least one chunk")?;
        Ok((Tensor::stack(&all, 1)?, Tensor::stack(&rs, 1)?))
    }

    /// The gradients of mixed, decay and beta from those of the normed q and k, v, g and β.
    fn merged(&self, dq: Tensor, dk: Tensor, dv: Tensor, dg: Tensor, db: Tensor, dtype: DType) -> Result<[Tensor; 3]> {
        let shape = self.places.shape;
        // Of x̂ = f x with f = s / √(|x|² + ε): dx = f (dx̂ − x̂ ⟨x̂, dx̂⟩ / s²).
        let unnormed = |d: Tensor, x: &Tensor, factors: &Tensor, square: f64| {
            let pull = ((&d * x)?.sum_keepdim(D::Minus1)? * square)?;
            (d - x.broadcast_mul(&pull)?)?.broadcast_mul(factors)
        };
        let dq = unnormed(dq, &self.q, &self.q_factors, shape.key_dim as f64)?;
        let dk = unnormed(dk, &self.k, &self.k_factors, 1.0)?;
        let [dq, dk] = [dq, dk].map(|d| self.places.merge(&d, shape.key_heads));
        let [dv, dg, db] = [dv, dg, db].map(|d| self.places.merge(&d, shape.value_heads));
        Ok([Tensor::cat(&[dq?, dk?, dv?], 1)?.to_dtype(dtype)?, dg?, db?])
    }
}

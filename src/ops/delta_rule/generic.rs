//! The body for any device, in candle's operations: sequences of like length padded to whole chunks and computed together, all but the passage of
//! the state from chunk to chunk for all chunks at once. Each operation is a launch on a GPU, so what goes from chunk to chunk is
//! one product: with the matrices of mod.rs,
//!
//!   S' = M S + W,  M = e^(c_C) I − (e^(c_C − c) K)ᵀ T,  W = (e^(c_C − c) K)ᵀ (I + L)⁻¹ β V,  T = (I + L)⁻¹ β e^c K
//!
//! and U = (I + L)⁻¹ β V − T S afterwards; back, dS = Mᵀ dS' + (e^c Q)ᵀ dO − Tᵀ Pᵀ dO.
//!
//! Shapes: Z = sequences · Hv, n chunks of C positions. Padding has β = 0 and g = 0, which changes no state, and dO = 0. The inverse
//! of I + L is made of those of its diagonal blocks, of 1, 2, 4 … rows: as stable as substitution.

use super::constants::Constants;
use super::groups::groups;
use super::places::{Places, in_order, sequences_in_order};
use super::shape::{EPS, Shape};
use crate::ops::attention::Layout;
use anyhow::Result;
use candle_core::{D, DType, Tensor};

/// What the backward pass needs, of each group of sequences.
pub struct Kept(Vec<OfGroup>);

struct OfGroup {
    /// The states before the chunks: [n, Z, Dk, Dv]
    states: Tensor,
    /// U: [n, Z, C, Dv]
    values: Tensor,
}

/// Everything but states and values.
struct Prepared {
    places: Places,
    constants: Constants,
    /// q and k over their lengths, [P, 2 Hk, Dk], and one over these, [P, 2 Hk, 1].
    units: Tensor,
    factors: Tensor,
    /// [n, Z, C, Dk], normed
    q: Tensor,
    k: Tensor,
    /// [n, Z, C, Dv]
    v: Tensor,
    /// [n, Z, C, 1]
    beta: Tensor,
    /// e^c and e^(c_C − c): [n, Z, C, 1]; e^(c_C): [n, Z, 1, 1]
    since: Tensor,
    until: Tensor,
    whole: Tensor,
    /// D, and below its diagonal; K Kᵀ ∘ D there; P; the inverse of I + L: [n, Z, C, C]
    pairs: Tensor,
    strict: Tensor,
    kk: Tensor,
    p: Tensor,
    inverse: Tensor,
    /// e^(c_C − c) K, and T: [n, Z, C, Dk]
    writing: Tensor,
    taken: Tensor,
    /// M: [n, Z, Dk, Dk]
    passage: Tensor,
}

impl Prepared {
    fn new([mixed, decay, beta]: [&Tensor; 3], shape: Shape, layout: &Layout, group: &[usize]) -> Result<Self> {
        let places = Places::new(layout, group, shape, mixed.device())?;
        let constants = Constants::of(places.chunk, mixed.device())?;
        let Shape { key_heads, value_heads, key_dim, value_dim } = shape;
        let (keys, rows) = (key_heads * key_dim, places.padded(mixed)?);
        let qk = rows.narrow(1, 0, 2 * keys)?.reshape(((), 2 * key_heads, key_dim))?;
        let factors = (qk.sqr()?.sum_keepdim(D::Minus1)? + f64::from(EPS))?.sqrt()?.recip()?;
        let units = qk.broadcast_mul(&factors)?;
        let of_head = |start: usize| places.split(&units.narrow(1, start, key_heads)?);
        let (q, k) = ((of_head(0)? * scale(shape))?, of_head(key_heads)?);
        let values = rows.narrow(1, 2 * keys, shape.value_width())?;
        let v = places.split(&values.reshape(((), value_heads, value_dim))?)?;
        let [beta, decay] = [beta, decay].map(|x| places.split(&places.masked(x)?.unsqueeze(2)?));
        let (beta, decay) = (beta?, decay?);
        let sums = by_row(&decay, &constants.so_far)?;
        let last = sums.narrow(2, places.chunk - 1, 1)?;
        let (since, until, whole) = (sums.exp()?, last.broadcast_sub(&sums)?.exp()?, last.exp()?);
        // No power of what is above the diagonal, which may be too large.
        let pairs = sums.broadcast_sub(&sums.transpose(2, 3)?)?.broadcast_minimum(&constants.limit)?.exp()?;
        let strict = pairs.broadcast_mul(&constants.below)?;
        let p = (across(&q, &k)? * &pairs)?;
        let kk = (across(&k, &k)? * &strict)?;
        let inverse = inverse(&kk.broadcast_mul(&beta)?, &constants)?;
        let writing = k.broadcast_mul(&until)?;
        let taken = inverse.matmul(&k.broadcast_mul(&(&beta * &since)?)?)?;
        let eye = Constants::of(key_dim, mixed.device())?.eye;
        let passage = (eye.broadcast_mul(&whole)? - writing.transpose(2, 3)?.matmul(&taken)?)?;
        Ok(Self {
            places,
            constants,
            units,
            factors,
            q,
            k,
            v,
            beta,
            since,
            until,
            whole,
            pairs,
            strict,
            kk,
            p,
            inverse,
            writing,
            taken,
            passage,
        })
    }
}

/// What q is multiplied with besides its length.
fn scale(shape: Shape) -> f64 {
    (shape.key_dim as f64).powf(-0.5)
}

/// a bᵀ of matrices in batches.
fn across(a: &Tensor, b: &Tensor) -> candle_core::Result<Tensor> {
    a.matmul(&b.transpose(2, 3)?)
}

fn rowsum(x: &Tensor) -> candle_core::Result<Tensor> {
    x.sum_keepdim(D::Minus1)
}

/// The C numbers of each chunk, [n, Z, C, 1], as rows times a matrix [C, C].
fn by_row(x: &Tensor, matrix: &Tensor) -> candle_core::Result<Tensor> {
    x.reshape(((), matrix.dim(0)?))?.matmul(matrix)?.reshape(x.shape())
}

/// (I + L)⁻¹ of strictly lower L: [n, Z, C, C]. With the inverses X of diagonal blocks of s rows, and B what lies between two
/// neighbours, those of 2 s rows are X − X B X.
fn inverse(l: &Tensor, constants: &Constants) -> candle_core::Result<Tensor> {
    let mut blocks = constants.between.iter();
    // The blocks of one row are 1.
    let Some(first) = blocks.next() else { return constants.eye.broadcast_as(l.shape())?.contiguous() };
    let mut x = constants.eye.broadcast_sub(&l.broadcast_mul(first)?)?;
    for between in blocks {
        x = (&x - x.matmul(&l.broadcast_mul(between)?)?.matmul(&x)?)?;
    }
    Ok(x)
}

/// x ← m_i x + a_i, chunk after chunk or from the last to the first: what x was before each, in the order of chunks, and is after
/// all. m: [n, Z, Dk, Dk], a: [n, Z, Dk, Dv], x: [Z, Dk, Dv]
fn passed(m: &Tensor, a: &Tensor, mut x: Tensor, from_last: bool) -> Result<(Tensor, Tensor)> {
    let chunks = m.dim(0)?;
    let mut before = Vec::with_capacity(chunks);
    for step in 0..chunks {
        let i = if from_last { chunks - 1 - step } else { step };
        let next = (m.get(i)?.matmul(&x)? + a.get(i)?)?;
        before.push(std::mem::replace(&mut x, next));
    }
    if from_last {
        before.reverse();
    }
    Ok((Tensor::stack(&before, 0)?, x))
}

/// The sequences in groups, by number.
fn of_like_length(layout: &Layout) -> Vec<Vec<usize>> {
    groups(&layout.spans.iter().map(|span| span.q_len).collect::<Vec<_>>())
}

pub fn forward(
    inputs: [&Tensor; 3],
    shape: Shape,
    layout: &Layout,
    before: Option<&Tensor>,
) -> Result<(Tensor, Tensor, Kept)> {
    let groups = of_like_length(layout);
    let (mut outputs, mut after, mut kept) = (vec![], vec![], vec![]);
    for group in &groups {
        let own = |before: &Tensor| {
            let numbers: Vec<u32> = group.iter().map(|number| *number as u32).collect();
            before.index_select(&Tensor::new(numbers, before.device())?, 0)
        };
        let before = if groups.len() > 1 { before.map(own).transpose()? } else { before.cloned() };
        let (output, states, saved) = group_forward(inputs, shape, layout, group, before.as_ref())?;
        outputs.push(output);
        after.push(states);
        kept.push(saved);
    }
    let after = sequences_in_order(&after, &groups, layout)?;
    Ok((in_order(&outputs, &groups, layout)?, after, Kept(kept)))
}

pub fn backward(inputs: [&Tensor; 3], kept: &Kept, dy: &Tensor, shape: Shape, layout: &Layout) -> Result<[Tensor; 3]> {
    let groups = of_like_length(layout);
    let mut all: [Vec<Tensor>; 3] = Default::default();
    for (group, kept) in groups.iter().zip(&kept.0) {
        let gradients = group_backward(inputs, kept, dy, shape, layout, group)?;
        all.iter_mut().zip(gradients).for_each(|(all, own)| all.push(own));
    }
    let [mixed, decay, beta] = all.each_ref().map(|parts| in_order(parts, &groups, layout));
    Ok([mixed?, decay?, beta?])
}

fn group_forward(
    inputs: [&Tensor; 3],
    shape: Shape,
    layout: &Layout,
    group: &[usize],
    before: Option<&Tensor>,
) -> Result<(Tensor, Tensor, OfGroup)> {
    let (mixed, sequences) = (inputs[0], group.len());
    let w = Prepared::new(inputs, shape, layout, group)?;
    let of_state = (sequences * shape.value_heads, shape.key_dim, shape.value_dim);
    let state = match before {
        Some(before) => before.to_dtype(DType::F32)?.reshape(of_state)?,
        None => Tensor::zeros(of_state, DType::F32, mixed.device())?,
    };
    let fresh = w.inverse.matmul(&w.v.broadcast_mul(&w.beta)?)?;
    let (states, after) = passed(&w.passage, &w.writing.transpose(2, 3)?.matmul(&fresh)?, state, false)?;
    let values = (fresh - w.taken.matmul(&states)?)?;
    let output = (w.q.broadcast_mul(&w.since)?.matmul(&states)? + w.p.matmul(&values)?)?;
    let output = w.places.unpadded(&w.places.merge(&output, shape.value_heads)?)?.to_dtype(mixed.dtype())?;
    Ok((output, after.reshape((sequences, shape.state_len()))?, OfGroup { states, values }))
}

fn group_backward(
    inputs: [&Tensor; 3],
    kept: &OfGroup,
    dy: &Tensor,
    shape: Shape,
    layout: &Layout,
    group: &[usize],
) -> Result<[Tensor; 3]> {
    let w = Prepared::new(inputs, shape, layout, group)?;
    let (states, u) = (&kept.states, &kept.values);
    let heads = (shape.value_heads, shape.value_dim);
    let d_output = w.places.split(&w.places.masked(dy)?.reshape(((), heads.0, heads.1))?)?;
    let (d_states, r) = w.back(&d_output)?;
    let g = r.broadcast_mul(&w.beta)?;

    // dP before the decays, and −dL where L is not 0.
    let (of_p, of_l) = (across(&d_output, u)?, across(&r, u)?);
    let (dp, of_kk) = ((&of_p * &w.pairs)?, (&of_l * &w.kk)?);
    let seen = w.k.matmul(states)?.broadcast_mul(&w.since)?;
    let d_beta = (rowsum(&(r * (&w.v - seen)?)?)? - rowsum(&of_kk)?)?;
    // −M, M as in mod.rs.
    let dm = (of_l * &w.strict)?.broadcast_mul(&w.beta)?;

    let of_q = across(&d_output, states)?.broadcast_mul(&w.since)?;
    let of_k = across(&g, states)?.broadcast_mul(&w.since)?;
    let written = across(u, &d_states)?.broadcast_mul(&w.until)?;
    let dq = (&of_q + dp.matmul(&w.k)?)?;
    let both = (&dm + dm.transpose(2, 3)?)?;
    let dk = (((&written - &of_k)? + dp.transpose(2, 3)?.matmul(&w.q)?)? - both.matmul(&w.k)?)?;

    // Of c: pairs i, j with i's sign, j's opposite one; what reads the state; what is written to it; and e^(c_C).
    let through = ((of_p * &w.p)? - of_kk.broadcast_mul(&w.beta)?)?;
    let written = rowsum(&(written * &w.k)?)?;
    let reads = (rowsum(&(of_q * &w.q)?)? - rowsum(&(of_k * &w.k)?)?)?;
    let d_sums = ((rowsum(&through)? - through.sum_keepdim(2)?.transpose(2, 3)?)? + (reads - &written)?)?;
    let d_whole = (rowsum(&(states * d_states)?)?.sum_keepdim(2)? * &w.whole)?;
    let at_end = (written.sum_keepdim(2)? + d_whole)?;
    // g_t is in every sum from t on, so e^(c_C) adds to all.
    let d_decay = by_row(&d_sums, &w.constants.so_far.t()?)?.broadcast_add(&at_end)?;
    w.merged([dq, dk, g, d_decay, d_beta], shape, inputs[0].dtype())
}

impl Prepared {
    /// dS' of every chunk [n, Z, Dk, Dv], and R [n, Z, C, Dv].
    fn back(&self, d_output: &Tensor) -> Result<(Tensor, Tensor)> {
        let own = self.p.transpose(2, 3)?.matmul(d_output)?;
        let reading = self.q.broadcast_mul(&self.since)?.transpose(2, 3)?.matmul(d_output)?;
        let added = (reading - self.taken.transpose(2, 3)?.matmul(&own)?)?;
        let d_state = added.get(0)?.zeros_like()?;
        let (d_states, _) = passed(&self.passage.transpose(2, 3)?, &added, d_state, true)?;
        let du = (own + self.writing.matmul(&d_states)?)?;
        Ok((d_states, self.inverse.transpose(2, 3)?.matmul(&du)?))
    }

    /// The gradients of mixed, decay and beta from those of q and k as they are used, v, g and β.
    fn merged(&self, [dq, dk, dv, dg, db]: [Tensor; 5], shape: Shape, dtype: DType) -> Result<[Tensor; 3]> {
        let merge = |d: &Tensor, heads: usize| self.places.merge(d, heads);
        let (key_heads, value_heads) = (shape.key_heads, shape.value_heads);
        let units = Tensor::cat(&[(merge(&dq, key_heads)? * scale(shape))?, merge(&dk, key_heads)?], 1)?;
        let units = units.reshape(self.units.shape())?;
        // Of x̂ = f x with f = 1 / √(|x|² + ε): dx = f (dx̂ − x̂ ⟨x̂, dx̂⟩).
        let pull = rowsum(&(&units * &self.units)?)?;
        let qk = (units - self.units.broadcast_mul(&pull)?)?.broadcast_mul(&self.factors)?;
        let mixed = Tensor::cat(&[qk.flatten_from(1)?, merge(&dv, value_heads)?], 1)?;
        let [dg, db] = [dg, db].map(|d| self.places.unpadded(&merge(&d, value_heads)?));
        Ok([self.places.unpadded(&mixed)?.to_dtype(dtype)?, dg?, db?])
    }
}

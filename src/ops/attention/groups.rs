//! Groups of sequences for the generic body: B of them, padded to the longest and to a multiple of [`ALIGNMENT`], are one
//! batch of B · Hkv products. Padding repeats some other row: it comes after a sequence's own rows, where no causal query
//! sees it, and its dO is zero.
//!
//! A sequence with too many scores is several groups, one for each block of its queries, which see the keys up to their
//! own end. So no tensor of scores grows with T², and none has more values than a GPU's 32-bit indices reach.

use super::shape::{Shape, Span};
use anyhow::Result;
use candle_core::{D, Device, Tensor};

/// Scores held at a time (256 MiB in f32), unless those of [`ALIGNMENT`] queries are more.
pub const MAX_SCORES: usize = 1 << 26;
/// Matrix units read rows of as many halves at once: products of other sizes are much slower.
const ALIGNMENT: usize = 8;

/// Sequences that are computed together, or a block of one's queries. Their rows follow one another; a group of more than
/// one has no cached keys.
pub struct Group {
    spans: Vec<Span>,
    /// Tq and Tk of the longest.
    pub lengths: (usize, usize),
    /// Set if they differ in length.
    padding: Option<Padding>,
}

/// Maps between the R rows of a group's sequences and the B · T places of the padded batch.
struct Padding {
    /// The row of each place; row 0 for padding.
    pad: Tensor,
    /// 1 for a row of the sequence, 0 for padding: [B · T, 1], f32.
    own: Tensor,
    /// [R]: the place of each row.
    unpad: Tensor,
}

impl Group {
    fn new(spans: Vec<Span>, device: &Device) -> Result<Self> {
        let longest = |length: fn(&Span) -> usize| spans.iter().map(length).max().unwrap_or(0);
        let lengths = (longest(|span| span.q_len), longest(|span| span.k_len));
        let aligned = if spans.iter().all(is_whole) { ALIGNMENT } else { 1 };
        let lengths = (lengths.0.next_multiple_of(aligned), lengths.1.next_multiple_of(aligned));
        let padding = spans.iter().any(|span| span.q_len != lengths.0);
        let padding = padding.then(|| Padding::new(&spans, lengths.0, device)).transpose()?;
        Ok(Self { spans, lengths, padding })
    }

    /// Consecutive spans as groups with at most `limit` padded scores over `heads` heads.
    pub fn all(spans: &[Span], heads: usize, limit: usize, device: &Device) -> Result<Vec<Self>> {
        let mut groups: Vec<Vec<Span>> = vec![];
        for &span in spans {
            let blocks = blocks(span, limit / heads.max(1));
            if blocks.len() > 1 {
                groups.extend(blocks.into_iter().map(|block| vec![block]));
                continue;
            }
            let joined = groups.last_mut().filter(|group| {
                let longest = group.iter().map(|other| other.q_len).max().unwrap_or(0).max(span.q_len);
                let longest = longest.next_multiple_of(ALIGNMENT);
                let follows = group.last().is_some_and(|last| last.q_start + last.q_len == span.q_start);
                follows
                    && is_whole(&span)
                    && group.iter().all(is_whole)
                    && (group.len() + 1) * heads * longest.pow(2) <= limit
            });
            match joined {
                Some(group) => group.push(span),
                None => groups.push(vec![span]),
            }
        }
        groups.into_iter().map(|spans| Self::new(spans, device)).collect()
    }

    #[cfg(test)]
    pub fn sequences(&self) -> usize {
        self.spans.len()
    }

    /// Whether its keys begin with those of `before`, which is an earlier block of the same sequence.
    pub fn continues(&self, before: &Self) -> bool {
        let start = |group: &Self| group.spans.first().map(|span| span.k_start);
        start(self).is_some() && start(self) == start(before)
    }

    /// Rows [N, H · D] of the group's queries -> [B · Hkv, (H / Hkv) · T, D]: the query heads that share a key head
    /// stacked below one another.
    pub fn queries(&self, x: &Tensor, shape: Shape) -> Result<Tensor> {
        let (start, rows) = self.rows(|span| (span.q_start, span.q_len));
        self.split_heads(&x.narrow(0, start, rows)?, shape)
    }

    /// The same for its keys or values.
    pub fn keys(&self, x: &Tensor, shape: Shape) -> Result<Tensor> {
        let (start, rows) = self.rows(|span| (span.k_start, span.k_len));
        self.split_heads(&x.narrow(0, start, rows)?, shape)
    }

    fn rows(&self, part: fn(&Span) -> (usize, usize)) -> (usize, usize) {
        (self.spans.first().map_or(0, |span| part(span).0), self.spans.iter().map(|span| part(span).1).sum())
    }

    /// dO in the layout of [`Group::queries`], with zeros for padding.
    pub fn gradients(&self, dy: &Tensor, shape: Shape) -> Result<Tensor> {
        let (start, rows) = self.rows(|span| (span.q_start, span.q_len));
        let dy = dy.narrow(0, start, rows)?;
        match &self.padding {
            Some(Padding { pad, own, .. }) => {
                let padded = dy.index_select(pad, 0)?.broadcast_mul(&own.to_dtype(dy.dtype())?)?;
                self.heads(&padded, shape)
            }
            None => self.heads(&dy, shape),
        }
    }

    fn split_heads(&self, x: &Tensor, shape: Shape) -> Result<Tensor> {
        match &self.padding {
            Some(padding) => self.heads(&x.index_select(&padding.pad, 0)?, shape),
            None => self.heads(x, shape),
        }
    }

    fn heads(&self, x: &Tensor, shape: Shape) -> Result<Tensor> {
        let x = x.reshape((self.spans.len(), (), x.dim(1)? / shape.head_dim, shape.head_dim))?;
        Ok(x.transpose(1, 2)?.contiguous()?.reshape((self.spans.len() * shape.kv_heads, (), shape.head_dim))?)
    }

    /// The inverse of [`Group::queries`] and [`Group::keys`], for sequences of `t` places.
    pub fn merge_heads(&self, x: &Tensor, t: usize) -> Result<Tensor> {
        let x = x.reshape((self.spans.len(), (), t, x.dim(D::Minus1)?))?.transpose(1, 2)?.contiguous()?;
        let x = x.reshape((self.spans.len() * t, ()))?;
        Ok(match &self.padding {
            Some(padding) => x.index_select(&padding.unpad, 0)?,
            None => x,
        })
    }
}

/// Whether all keys are the span's own.
fn is_whole(span: &Span) -> bool {
    span.q_len == span.k_len && span.q_start == span.k_start
}

/// A span as blocks of queries with at most `limit` scores each, or [`ALIGNMENT`] queries if one has more; each block
/// with the keys that its last query sees.
fn blocks(span: Span, limit: usize) -> Vec<Span> {
    if span.q_len.saturating_mul(span.k_len) <= limit {
        return vec![span];
    }
    let (mut blocks, mut start) = (vec![], 0);
    while start < span.q_len {
        let before = start + span.k_len - span.q_len;
        // The largest n with n (before + n) ≤ limit.
        let most = ((before.pow(2) + 4 * limit).isqrt() - before) / 2;
        let length = (most / ALIGNMENT * ALIGNMENT).max(ALIGNMENT).min(span.q_len - start);
        let (q_start, k_len) = (span.q_start + start, before + length);
        blocks.push(Span { q_start, q_len: length, k_start: span.k_start, k_len });
        start += length;
    }
    blocks
}

impl Padding {
    fn new(spans: &[Span], longest: usize, device: &Device) -> Result<Self> {
        let rows = spans.iter().map(|span| span.q_len).sum();
        let places = spans.len() * longest;
        let (mut pad, mut own, mut unpad) = (vec![0u32; places], vec![0f32; places], Vec::with_capacity(rows));
        for (i, span) in spans.iter().enumerate() {
            for place in i * longest..i * longest + span.q_len {
                (pad[place], own[place]) = (unpad.len() as u32, 1.0);
                unpad.push(place as u32);
            }
        }
        let own = Tensor::from_vec(own, (places, 1), device)?;
        Ok(Self { pad: Tensor::new(pad, device)?, own, unpad: Tensor::new(unpad, device)? })
    }
}

/// [Tq, Tk] of 0 where a query sees a key and −∞ where it does not, f32; made on the device.
pub fn mask((tq, tk): (usize, usize), window: Option<usize>, device: &Device) -> Result<Tensor> {
    // Positions are exact in f32, which every device compares.
    let positions = |start: usize, count| Tensor::arange(start as f32, (start + count) as f32, device);
    let (queries, keys) = (positions(tk - tq, tq)?.unsqueeze(1)?, positions(0, tk)?.unsqueeze(0)?);
    let hidden = Tensor::full(f32::NEG_INFINITY, (tq, tk), device)?;
    let mask = keys.broadcast_le(&queries)?.where_cond(&hidden.zeros_like()?, &hidden)?;
    Ok(match window.filter(|&window| window < tk) {
        Some(window) => {
            let ends = positions(window, tk)?.unsqueeze(0)?;
            ends.broadcast_gt(&queries)?.where_cond(&mask, &hidden)?
        }
        None => mask,
    })
}

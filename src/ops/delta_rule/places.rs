//! Where rows are among the padded chunks of a group of sequences, for the body for any device.

use super::groups::chunks;
use super::shape::Shape;
use crate::ops::attention::{Layout, Span};
use anyhow::{Result, bail};
use candle_core::{D, DType, Device, Tensor};

/// What was made of each group's rows, in the order of all rows.
pub fn in_order(parts: &[Tensor], groups: &[Vec<usize>], layout: &Layout) -> Result<Tensor> {
    put_together(parts, layout, "delta rule: order of rows", || {
        let spans = groups.iter().flatten().map(|number| layout.spans[*number]);
        inverted(spans.flat_map(|span| span.q_start..span.q_start + span.q_len))
    })
}

/// What was made of each group's sequences, in the order of all sequences.
pub fn sequences_in_order(parts: &[Tensor], groups: &[Vec<usize>], layout: &Layout) -> Result<Tensor> {
    put_together(parts, layout, "delta rule: order of sequences", || inverted(groups.iter().flatten().copied()))
}

fn put_together(parts: &[Tensor], layout: &Layout, what: &str, order: impl FnOnce() -> Vec<u32>) -> Result<Tensor> {
    let first = match parts {
        [] => bail!("the delta rule of no sequence"),
        [one] => return Ok(one.clone()),
        [first, ..] => first,
    };
    let order = layout.kept(what, |_| Ok(Tensor::new(order(), first.device())?))?;
    Ok(Tensor::cat(parts, 0)?.index_select(&order, 0)?)
}

/// Where each number is in `order`, which has each once.
fn inverted(order: impl Iterator<Item = usize>) -> Vec<u32> {
    let mut pairs: Vec<(usize, u32)> = order.zip(0..).collect();
    pairs.sort_unstable();
    pairs.into_iter().map(|(_, place)| place).collect()
}

/// Maps between the N rows and P = sequences · n · C places of a group. Padding is at the ends of sequences; it repeats row 0.
pub struct Places {
    sequences: usize,
    /// n
    pub chunks: usize,
    /// C
    pub chunk: usize,
    shape: Shape,
    /// Unless rows are in their places as they are.
    padding: Option<Padding>,
}

struct Padding {
    /// The row of each place, among all: [P]
    rows: Tensor,
    /// 1 for a row of the sequence, 0 for padding: [P, 1], f32
    own: Tensor,
    /// The place of each of the group's rows
    places: Tensor,
}

impl Places {
    pub fn new(layout: &Layout, group: &[usize], shape: Shape, device: &Device) -> Result<Self> {
        let lengths = || group.iter().map(|number| layout.spans[*number].q_len);
        let (chunks, chunk) = chunks(lengths().max().unwrap_or(0));
        let length = chunks * chunk;
        let is_padded = group.len() < layout.spans.len() || lengths().any(|own| own != length);
        let padding = is_padded.then(|| Padding::new(layout, group, length, device)).transpose()?;
        Ok(Self { sequences: group.len(), chunks, chunk, shape, padding })
    }

    fn sizes(&self) -> [usize; 3] {
        [self.sequences, self.chunks, self.chunk]
    }

    /// [N, width] -> [P, width] in f32
    pub fn padded(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        Ok(match &self.padding {
            // Of all rows only the group's are made wider.
            Some(padding) => x.index_select(&padding.rows, 0)?,
            None => x,
        }
        .to_dtype(DType::F32)?)
    }

    /// The same with zeros for padding.
    pub fn masked(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.padded(x)?;
        Ok(match &self.padding {
            Some(padding) => x.broadcast_mul(&padding.own)?,
            None => x,
        })
    }

    /// [P, width] -> the group's rows of that width
    pub fn unpadded(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match &self.padding {
            Some(padding) => x.index_select(&padding.places, 0)?,
            None => x.clone(),
        })
    }

    /// [P, heads, d] -> [n, Z, C, d], each head as often as it is read
    pub fn split(&self, x: &Tensor) -> Result<Tensor> {
        let (_, heads, d) = x.dims3()?;
        let (times, [sequences, chunks, chunk]) = (self.shape.value_heads / heads, self.sizes());
        let x = x.reshape(&[sequences, chunks, chunk, heads, 1, d])?;
        let x = x.broadcast_as(&[sequences, chunks, chunk, heads, times, d])?;
        let x = x.permute([1, 0, 3, 4, 2, 5])?.contiguous()?;
        Ok(x.reshape((chunks, sequences * self.shape.value_heads, chunk, d))?)
    }

    /// The inverse, with the sum over what was read of a head: [n, Z, C, d] -> [P, heads · d]
    pub fn merge(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let (d, times) = (x.dim(D::Minus1)?, self.shape.value_heads / heads);
        let [sequences, chunks, chunk] = self.sizes();
        let x = x.reshape(&[chunks, sequences, heads, times, chunk, d])?;
        let x = if times > 1 { x.sum(3)? } else { x.squeeze(3)? };
        Ok(x.permute([1, 0, 3, 2, 4])?.contiguous()?.reshape((sequences * chunks * chunk, heads * d))?)
    }
}

impl Padding {
    /// Of sequences that take `length` places each; made once for all layers.
    fn new(layout: &Layout, group: &[usize], length: usize, device: &Device) -> Result<Self> {
        let numbered = || {
            let spans = group.iter().map(|number| layout.spans[*number]).enumerate();
            spans.flat_map(|(number, span)| (0..span.q_len).map(move |t| (number, span, t)))
        };
        let place = |(number, _, t): &(usize, Span, usize)| number * length + t;
        // Each sequence is in one group only.
        let first = group.first().copied().unwrap_or(0);
        let rows = layout.kept(format!("delta rule: rows from {first}"), |_| {
            let mut rows = vec![0u32; group.len() * length];
            numbered().for_each(|at| rows[place(&at)] = (at.1.q_start + at.2) as u32);
            Ok(Tensor::new(rows, device)?)
        })?;
        let own = layout.kept(format!("delta rule: own from {first}"), |_| {
            let mut own = vec![0f32; group.len() * length];
            numbered().for_each(|at| own[place(&at)] = 1.0);
            Ok(Tensor::from_vec(own, (group.len() * length, 1), device)?)
        })?;
        let places = layout.kept(format!("delta rule: places from {first}"), |_| {
            Ok(Tensor::new(numbered().map(|at| place(&at) as u32).collect::<Vec<u32>>(), device)?)
        })?;
        Ok(Self { rows, own, places })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_inverted() {
        assert_eq!(inverted([2, 0, 1].into_iter()), [1, 2, 0]);
    }
}

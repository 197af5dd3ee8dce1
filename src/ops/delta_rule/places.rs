//! Where rows are among the padded chunks of all sequences, for the body for any device.

use super::shape::{CHUNK, Shape};
use crate::ops::attention::Layout;
use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};

/// Maps between the N rows and P = sequences · n · C places. Padding is at the ends of sequences; it repeats row 0.
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
    /// The row of each place: [P]
    rows: Tensor,
    /// 1 for a row of the sequence, 0 for padding: [P, 1], f32
    own: Tensor,
    /// The place of each row: [N]
    places: Tensor,
}

impl Places {
    pub fn new(layout: &Layout, shape: Shape, device: &Device) -> Result<Self> {
        let spans = &layout.spans;
        let longest = spans.iter().map(|span| span.q_len).max().unwrap_or(0).max(1);
        let chunk = CHUNK.min(longest.next_power_of_two());
        let chunks = longest.div_ceil(chunk);
        let length = chunks * chunk;
        let is_padded = spans.iter().any(|span| span.q_len != length);
        let padding = is_padded.then(|| Padding::new(layout, length, device)).transpose()?;
        Ok(Self { sequences: spans.len(), chunks, chunk, shape, padding })
    }

    fn sizes(&self) -> [usize; 3] {
        [self.sequences, self.chunks, self.chunk]
    }

    /// [N, width] -> [P, width] in f32
    pub fn padded(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.to_dtype(DType::F32)?.contiguous()?;
        Ok(match &self.padding {
            Some(padding) => x.index_select(&padding.rows, 0)?,
            None => x,
        })
    }

    /// The same with zeros for padding.
    pub fn masked(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.padded(x)?;
        Ok(match &self.padding {
            Some(padding) => x.broadcast_mul(&padding.own)?,
            None => x,
        })
    }

    /// [P, width] -> [N, width]
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
    fn new(layout: &Layout, length: usize, device: &Device) -> Result<Self> {
        let spans = &layout.spans;
        let numbered =
            || spans.iter().enumerate().flat_map(|(number, span)| (0..span.q_len).map(move |t| (number, span, t)));
        let place = |(number, _, t): &(usize, _, usize)| number * length + t;
        let rows = layout.kept("delta rule: rows", |spans| {
            let mut rows = vec![0u32; spans.len() * length];
            numbered().for_each(|at| rows[place(&at)] = (at.1.q_start + at.2) as u32);
            Ok(Tensor::new(rows, device)?)
        })?;
        let own = layout.kept("delta rule: own", |spans| {
            let mut own = vec![0f32; spans.len() * length];
            numbered().for_each(|at| own[place(&at)] = 1.0);
            Ok(Tensor::from_vec(own, (spans.len() * length, 1), device)?)
        })?;
        let places = layout.kept("delta rule: places", |_| {
            Ok(Tensor::new(numbered().map(|at| place(&at) as u32).collect::<Vec<u32>>(), device)?)
        })?;
        Ok(Self { rows, own, places })
    }
}

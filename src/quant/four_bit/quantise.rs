//! From values to four bits each, as bitsandbytes 0.50 does it on the CPU.
//!
//! A block's values times 1 / absmax (the values of a last, shorter block are divided instead) take the nearest number of
//! the table; halfway, the lower one. The scales are quantised in turn: less their mean, in blocks of 256, to the
//! nearest of 256 numbers, halfway to the lower one. The mean is summed in f64 here and in some order in f32 there: it
//! may differ in its last bit.

use super::codes::{FourBit, Nested, Parts, Rounding, Scales};
use super::tables::{Kind, dynamic};
use crate::ensure_valid;
use anyhow::Result;
use rayon::prelude::*;

/// Values that share a scale, and scales that share theirs; bitsandbytes' defaults.
pub const BLOCK: usize = 64;
const SCALE_BLOCK: usize = 256;
/// An absmax counts as at least this.
const SMALLEST: f32 = 1e-38;

impl FourBit {
    /// Quantises `values` in blocks of 64, with quantised scales. What it stands for afterwards is not rounded to a half.
    ///
    /// # Errors
    /// A value that is infinite or NaN.
    #[cfg(test)]
    pub fn quantise(kind: Kind, values: &[f32]) -> Result<Self> {
        let mut codes = Quantiser::new(kind, values.len());
        codes.push(values)?;
        codes.finish()
    }
}

/// Quantises values that come in pieces, in blocks of 64 with quantised scales. What the result stands for is not rounded to
/// a half.
pub struct Quantiser {
    kind: Kind,
    packed: Vec<u8>,
    absmax: Vec<f32>,
    /// Values that fill no block yet.
    rest: Vec<f32>,
    length: usize,
}

impl Quantiser {
    /// For about `length` values.
    pub fn new(kind: Kind, length: usize) -> Self {
        let (packed, absmax) = (Vec::with_capacity(length.div_ceil(2)), Vec::with_capacity(length.div_ceil(BLOCK)));
        Self { kind, packed, absmax, rest: vec![], length: 0 }
    }

    /// # Errors
    /// A value that is infinite or NaN.
    pub fn push(&mut self, values: &[f32]) -> Result<()> {
        self.length += values.len();
        let missing = (BLOCK - self.rest.len()) % BLOCK;
        let (first, values) = values.split_at(missing.min(values.len()));
        self.rest.extend(first);
        if self.rest.len() == BLOCK {
            let block = std::mem::take(&mut self.rest);
            self.blocks(&block)?;
        }
        let whole = values.len() / BLOCK * BLOCK;
        self.blocks(&values[..whole])?;
        self.rest.extend(&values[whole..]);
        Ok(())
    }

    fn blocks(&mut self, values: &[f32]) -> Result<()> {
        let (packed, absmax) = quantise_blocks(self.kind, values)?;
        self.packed.extend(packed);
        self.absmax.extend(absmax);
        Ok(())
    }

    /// # Errors
    /// A value of the last block that is infinite or NaN.
    pub fn finish(mut self) -> Result<FourBit> {
        let rest = std::mem::take(&mut self.rest);
        self.blocks(&rest)?;
        let (packed, block, table) = (self.packed, BLOCK, self.kind.table());
        let scales = Scales::Nested(quantise_scales(&self.absmax));
        FourBit::new(self.length, Parts { packed, block, table, scales, rounding: Rounding::F32 })
    }
}

/// Two codes a byte, and the largest magnitude of each block of [`BLOCK`].
fn quantise_blocks(kind: Kind, values: &[f32]) -> Result<(Vec<u8>, Vec<f32>)> {
    let nearest = Nearest::new(kind);
    let mut packed = vec![0u8; values.len().div_ceil(2)];
    let mut absmax = vec![0f32; values.len().div_ceil(BLOCK)];
    let blocks = packed.par_chunks_mut(BLOCK / 2).zip(absmax.par_iter_mut()).zip(values.par_chunks(BLOCK));
    let finite = blocks.map(|((packed, absmax), values)| {
        *absmax = largest(values);
        let mut scaled = [0f32; BLOCK];
        if values.len() == BLOCK {
            let factor = 1.0 / absmax.max(SMALLEST);
            scaled.iter_mut().zip(values).for_each(|(scaled, x)| *scaled = x * factor);
        } else {
            *absmax = absmax.max(SMALLEST);
            scaled.iter_mut().zip(values).for_each(|(scaled, x)| *scaled = x / *absmax);
        }
        // An odd last value shares its byte with a zero.
        let codes = nearest.codes(&scaled);
        packed.iter_mut().zip(codes.as_chunks::<2>().0).for_each(|(byte, [high, low])| *byte = high << 4 | low);
        values.iter().all(|x| x.is_finite())
    });
    ensure_valid!(finite.reduce(|| true, |a, b| a && b), "it holds infinite values or NaN, which cannot be quantised");
    Ok((packed, absmax))
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()))
}

/// The nearest numbers of a table.
struct Nearest {
    /// Halfway between neighbours, ascending.
    bounds: [f32; 15],
    /// The codes in ascending order of what they stand for.
    order: [u8; 16],
}

impl Nearest {
    fn new(kind: Kind) -> Self {
        let table = kind.table();
        let mut order: [u8; 16] = std::array::from_fn(|i| i as u8);
        // FP4's two zeros are equal: the sort keeps them in the order of their codes.
        order.sort_by(|a, b| (table[usize::from(*a)] + 0.0).total_cmp(&(table[usize::from(*b)] + 0.0)));
        let value = |i: usize| table[usize::from(order[i])];
        Self { bounds: std::array::from_fn(|i| (value(i) + value(i + 1)) / 2.0), order }
    }

    /// The codes of a block. Bound by bound, which the compiler vectorises.
    fn codes(&self, block: &[f32; BLOCK]) -> [u8; BLOCK] {
        let mut places = [0u32; BLOCK];
        for bound in self.bounds {
            // Beyond the ends by rounding is as good as at them.
            places.iter_mut().zip(block).for_each(|(place, x)| *place += u32::from(*x > bound));
        }
        places.map(|place| self.order[place as usize])
    }
}

/// The scales of blocks in a byte each.
fn quantise_scales(scales: &[f32]) -> Nested {
    let table = dynamic();
    let halfway: Vec<f32> = table.windows(2).map(|pair| 0.5 * (pair[0] + pair[1])).collect();
    let sum: f64 = scales.iter().map(|&scale| f64::from(scale)).sum();
    let offset = (sum / scales.len().max(1) as f64) as f32;
    let mut codes = vec![0; scales.len()];
    let blocks = codes.par_chunks_mut(SCALE_BLOCK).zip(scales.par_chunks(SCALE_BLOCK));
    let absmax = blocks.map(|(codes, scales)| {
        let centred: Vec<f32> = scales.iter().map(|scale| scale - offset).collect();
        let absmax = largest(&centred);
        if absmax > 0.0 {
            let factor = 1.0 / absmax;
            codes.iter_mut().zip(centred).for_each(|(code, x)| *code = nearest(&halfway, x * factor));
        }
        absmax
    });
    let absmax = absmax.collect();
    Nested { codes, table, absmax, block: SCALE_BLOCK, offset }
}

/// The place in a table of the number nearest to x, by what is halfway between neighbours; x is first rounded to one of
/// 65536 steps from -1 to 1, as bitsandbytes does to look it up. (On a GPU it does not: a scale between two numbers may
/// take the other there.)
fn nearest(halfway: &[f32], x: f32) -> u8 {
    const STEPS: f32 = 65_535.0;
    let step = ((x.clamp(-1.0, 1.0) + 1.0) * 0.5 * STEPS + 0.5).floor();
    let x = -1.0 + 2.0 * step / STEPS;
    // At most 255.
    halfway.partition_point(|bound| *bound < x) as u8
}

/// Bytes that [`FourBit::quantise`] makes of `length` values.
pub fn bytes_of(length: usize) -> usize {
    let scales = length.div_ceil(BLOCK);
    length.div_ceil(2) + scales + size_of::<f32>() * (256 + scales.div_ceil(SCALE_BLOCK) + 1)
}

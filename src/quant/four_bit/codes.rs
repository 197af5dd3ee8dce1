//! What a matrix in four bits is made of.

use crate::ensure_valid;
use anyhow::Result;
use half::{bf16, f16};
use std::ops::Range;

/// Values that vector instructions take at once, if they are of one block.
#[cfg(target_arch = "x86_64")]
pub(super) const PART: usize = 64;

/// The type that values are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    F32,
    Bf16,
    F16,
}

impl Rounding {
    pub(super) fn apply(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::Bf16 => bf16::from_f32(value).to_f32(),
            Self::F16 => f16::from_f32(value).to_f32(),
        }
    }
}

/// The scales of blocks.
#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    Plain(Vec<f32>),
    Nested(Nested),
}

/// Scales in a byte each: scale i is table[codes[i]] · absmax[i / block] + offset.
#[derive(Clone, Debug, PartialEq)]
pub struct Nested {
    pub codes: Vec<u8>,
    /// 256 values
    pub table: Vec<f32>,
    pub absmax: Vec<f32>,
    /// Scales that share a value of `absmax`.
    pub block: usize,
    pub offset: f32,
}

impl Scales {
    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Self::Plain(scales) => scales.len(),
            Self::Nested(nested) => nested.codes.len(),
        }
    }

    /// The scale of block `i`, below [`Scales::count`].
    pub(super) fn get(&self, i: usize) -> f32 {
        match self {
            Self::Plain(scales) => scales[i],
            Self::Nested(n) => n.table[usize::from(n.codes[i])] * n.absmax[i / n.block] + n.offset,
        }
    }

    /// The scales of `out.len()` blocks from block `first` on, for the vector instructions of lookup.rs.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn read(&self, first: usize, out: &mut [f32]) {
        match self {
            Self::Plain(scales) => out.copy_from_slice(&scales[first..][..out.len()]),
            Self::Nested(n) => {
                let (mut codes, mut out, mut at) = (&n.codes[first..], out, first);
                while !out.is_empty() {
                    let (group, length) = (at / n.block, (n.block - at % n.block).min(out.len()));
                    let (now, later) = out.split_at_mut(length);
                    for (scale, code) in now.iter_mut().zip(codes) {
                        *scale = n.table[usize::from(*code)];
                    }
                    // In a loop of its own, which the compiler vectorises.
                    let absmax = n.absmax[group];
                    now.iter_mut().for_each(|scale| *scale = *scale * absmax + n.offset);
                    (codes, out, at) = (&codes[length..], later, at + length);
                }
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Plain(scales) => size_of_val(scales.as_slice()),
            Self::Nested(n) => n.codes.len() + size_of::<f32>() * (n.table.len() + n.absmax.len() + 1),
        }
    }
}

/// Values in four bits each.
#[derive(Clone, Debug, PartialEq)]
pub struct FourBit {
    length: usize,
    pub(super) packed: Vec<u8>,
    block: usize,
    table: [f32; 16],
    scales: Scales,
    rounding: Rounding,
}

/// What a [`FourBit`] is made of.
pub struct Parts {
    /// Two values a byte, the first in the high half.
    pub packed: Vec<u8>,
    /// Values that share a scale.
    pub block: usize,
    pub table: [f32; 16],
    pub scales: Scales,
    pub rounding: Rounding,
}

impl FourBit {
    /// # Errors
    /// Parts that do not fit `length` values; a table or scales that are not finite.
    pub fn new(length: usize, parts: Parts) -> Result<Self> {
        let Parts { packed, block, table, scales, rounding } = parts;
        ensure_valid!(block > 0 && block.is_multiple_of(2), "a block of {block} values; expected an even number");
        ensure_valid!(
            packed.len() == length.div_ceil(2),
            "{} bytes of values; {length} in four bits each take {}",
            packed.len(),
            length.div_ceil(2)
        );
        ensure_valid!(
            scales.count() == length.div_ceil(block),
            "{} scales; {length} values in blocks of {block} have {}",
            scales.count(),
            length.div_ceil(block)
        );
        if let Scales::Nested(n) = &scales {
            let expected = if n.block > 0 { n.codes.len().div_ceil(n.block) } else { 0 };
            ensure_valid!(
                n.table.len() == 256 && n.block > 0 && n.absmax.len() == expected,
                "quantised scales: a table of {}, {} scales in blocks of {} with {} of their own; expected a table of 256 and {expected}",
                n.table.len(),
                n.codes.len(),
                n.block,
                n.absmax.len()
            );
        }
        let finite = (0..scales.count()).all(|i| scales.get(i).is_finite()) && table.iter().all(|x| x.is_finite());
        ensure_valid!(finite, "the table or a scale is infinite or NaN");
        Ok(Self { length, packed, block, table, scales, rounding })
    }

    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.packed.len() + self.scales.bytes()
    }

    /// Two values a byte, the first in the high half.
    pub fn packed(&self) -> &[u8] {
        &self.packed
    }

    /// Values that share a scale.
    pub fn block(&self) -> usize {
        self.block
    }

    /// What a code of four bits stands for, before its scale.
    pub fn table(&self) -> &[f32; 16] {
        &self.table
    }

    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    pub fn rounding(&self) -> Rounding {
        self.rounding
    }

    /// The values that each code stands for in block `i`.
    #[inline(always)]
    pub(super) fn table_of(&self, i: usize) -> [f32; 16] {
        let scale = self.scales.get(i);
        self.table.map(|value| self.rounding.apply(value * scale))
    }

    /// The code of value `i`.
    #[inline(always)]
    pub(super) fn code(&self, i: usize) -> usize {
        let byte = self.packed[i / 2];
        usize::from(if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 })
    }

    /// The scale of each of `count` parts of [`PART`] values from the `first` on; blocks are of whole parts.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn scales_of_parts(&self, first: usize, count: usize) -> Vec<f32> {
        let in_block = self.block / PART;
        let block = first / in_block;
        let mut scales = vec![0f32; (first + count).div_ceil(in_block) - block];
        self.scales.read(block, &mut scales);
        if in_block == 1 {
            return scales;
        }
        (first..first + count).map(|part| scales[part / in_block - block]).collect()
    }

    /// The parts of `range` that lie in one block each, with the number of the block.
    pub(super) fn in_blocks(&self, range: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
        let (block, end) = (self.block, range.end);
        let mut start = range.start;
        std::iter::from_fn(move || {
            (start < end).then(|| {
                let i = start / block;
                let part = start..((i + 1) * block).min(end);
                start = part.end;
                (i, part)
            })
        })
    }
}

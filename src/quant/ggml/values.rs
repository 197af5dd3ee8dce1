//! A row of blocks, from any value on to any other.

use super::GgmlType;
use crate::ensure_valid;
use crate::vectors::vectorised;
use anyhow::Result;

/// The most values that a block has.
const LONGEST: usize = 256;
/// Sums of a product that grow side by side: as many as a vector has lanes, so that none waits for another.
const LANES: usize = 16;

/// Values in whole blocks, in this machine's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgmlValues {
    kind: GgmlType,
    bytes: Vec<u8>,
}

impl GgmlValues {
    /// # Errors
    /// Bytes that are not whole blocks, or blocks with an infinite or undefined value.
    pub fn new(kind: GgmlType, bytes: Vec<u8>) -> Result<Self> {
        ensure_valid!(
            bytes.len().is_multiple_of(kind.block_bytes()),
            "{} bytes are not whole blocks of {}, which have {}",
            bytes.len(),
            kind.name(),
            kind.block_bytes()
        );
        ensure_valid!(kind.is_finite(&bytes), "blocks of {} with infinite or undefined scales", kind.name());
        Ok(Self { kind, bytes })
    }

    pub fn kind(&self) -> GgmlType {
        self.kind
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.kind.block_bytes() * self.kind.block_len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The blocks as they lie in a file.
    pub fn packed(&self) -> &[u8] {
        &self.bytes
    }

    /// `out.len()` values from `start` on.
    pub fn widen(&self, start: usize, out: &mut [f32]) {
        self.for_each_part(start, out.len(), |blocks, skip, at, count| {
            let out = &mut out[at..at + count];
            if skip == 0 && count.is_multiple_of(self.kind.block_len()) {
                self.kind.widen(blocks, out);
            } else {
                let mut block = [0f32; LONGEST];
                self.kind.widen(blocks, &mut block[..self.kind.block_len()]);
                out.copy_from_slice(&block[skip..skip + count]);
            }
        });
    }

    /// Σ value · x over `x.len()` values from `start` on.
    pub fn dot(&self, start: usize, x: &[f32]) -> f32 {
        let (mut sums, mut wide) = ([0f32; LANES], [0f32; LONGEST]);
        for (i, x) in x.chunks(LONGEST).enumerate() {
            self.widen(start + i * LONGEST, &mut wide[..x.len()]);
            vectorised!({
                let (vectors, single) = x.as_chunks::<LANES>();
                let (values, rest) = wide[..x.len()].as_chunks::<LANES>();
                for (values, x) in values.iter().zip(vectors) {
                    for ((sum, value), x) in sums.iter_mut().zip(values).zip(x) {
                        *sum += value * x;
                    }
                }
                for (value, x) in rest.iter().zip(single) {
                    sums[0] += value * x;
                }
            });
        }
        sums.iter().sum()
    }

    /// Calls `take` with the blocks of each part of `count` values from `start` on, how many values of theirs to skip,
    /// where in the range the part begins, and how many values it has. The first and the last part may be a piece of a
    /// block.
    fn for_each_part(&self, start: usize, count: usize, mut take: impl FnMut(&[u8], usize, usize, usize)) {
        let (len, bytes) = (self.kind.block_len(), self.kind.block_bytes());
        let mut at = 0;
        while at < count {
            let (block, skip) = ((start + at) / len, (start + at) % len);
            let left = count - at;
            let part = if skip > 0 || left < len { left.min(len - skip) } else { left / len * len };
            let end = block + (skip + part).div_ceil(len);
            take(&self.bytes[block * bytes..end * bytes], skip, at, part);
            at += part;
        }
    }
}

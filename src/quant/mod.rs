//! Matrices in a few bits a value, as bitsandbytes and GGUF files hold them: what they stand for, and how to get there.

mod four_bit;
pub mod ggml;
mod vector;

pub use four_bit::{FourBit, Kind, Nested, Parts, Rounding, Scales};
pub use vector::Vector;

use crate::ensure_valid;
use anyhow::Result;
use ggml::GgmlType;
use std::fmt;

/// A matrix [rows, columns], row-major, in quantised blocks in this machine's memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantised {
    rows: usize,
    columns: usize,
    blocks: Blocks,
}

/// The blocks of a [`Quantised`].
#[derive(Clone, Debug, PartialEq)]
pub enum Blocks {
    FourBit(FourBit),
    Ggml(Ggml),
}

/// Blocks of one of ggml's quantised types, a row of whole ones after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Ggml {
    pub kind: GgmlType,
    pub bytes: Vec<u8>,
}

/// A way to quantise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    FourBit(Kind),
    Ggml(GgmlType),
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FourBit(Kind::Nf4) => "NF4",
            Self::FourBit(Kind::Fp4) => "FP4",
            Self::Ggml(kind) => kind.name(),
        })
    }
}

impl Format {
    /// Quantises a matrix [rows, columns] of row-major values.
    ///
    /// # Errors
    /// Infinite values or NaN; a shape that the format cannot hold.
    pub fn quantise(self, shape: (usize, usize), values: &[f32]) -> Result<Quantised> {
        let mut quantiser = Quantiser::new(self, shape)?;
        quantiser.push(values)?;
        quantiser.finish()
    }

    /// Bytes that a matrix [rows, columns] takes.
    pub fn bytes(self, (rows, columns): (usize, usize)) -> usize {
        match self {
            Self::FourBit(_) => four_bit::bytes_of(rows * columns),
            Self::Ggml(kind) => rows * columns / kind.block_len() * kind.block_bytes(),
        }
    }
}

/// Quantises a matrix whose values come in pieces, so that they need not be in memory together.
pub struct Quantiser {
    shape: (usize, usize),
    blocks: Pieces,
}

enum Pieces {
    FourBit(four_bit::Quantiser),
    Ggml { blocks: Ggml, rest: Vec<f32> },
}

impl Quantiser {
    /// For a matrix [rows, columns].
    ///
    /// # Errors
    /// A shape that the format cannot hold.
    pub fn new(format: Format, (rows, columns): (usize, usize)) -> Result<Self> {
        let blocks = match format {
            Format::FourBit(kind) => Pieces::FourBit(four_bit::Quantiser::new(kind, rows * columns)),
            Format::Ggml(kind) => {
                let block = kind.block_len();
                ensure_valid!(
                    columns.is_multiple_of(block),
                    "rows of {columns} are not whole blocks of {block} values"
                );
                let bytes = Vec::with_capacity(format.bytes((rows, columns)));
                Pieces::Ggml { blocks: Ggml { kind, bytes }, rest: vec![] }
            }
        };
        Ok(Self { shape: (rows, columns), blocks })
    }

    /// Takes the next values.
    ///
    /// # Errors
    /// Infinite values or NaN.
    pub fn push(&mut self, values: &[f32]) -> Result<()> {
        match &mut self.blocks {
            Pieces::FourBit(codes) => codes.push(values),
            Pieces::Ggml { blocks, rest } => {
                rest.extend(values);
                let whole = rest.len() / blocks.kind.block_len() * blocks.kind.block_len();
                let left = rest.split_off(whole);
                blocks.bytes.extend(blocks.kind.quantise(rest)?);
                *rest = left;
                Ok(())
            }
        }
    }

    /// # Errors
    /// Another number of values than the matrix has; infinite values or NaN.
    pub fn finish(self) -> Result<Quantised> {
        let blocks = match self.blocks {
            Pieces::FourBit(codes) => Blocks::FourBit(codes.finish()?),
            Pieces::Ggml { blocks, .. } => Blocks::Ggml(blocks),
        };
        Quantised::new(self.shape, blocks)
    }
}

impl Quantised {
    /// # Errors
    /// Blocks of another size, or across rows where they must not be.
    pub fn new((rows, columns): (usize, usize), blocks: Blocks) -> Result<Self> {
        let values = match &blocks {
            Blocks::FourBit(values) => values.len(),
            Blocks::Ggml(Ggml { kind, bytes }) => {
                let whole = kind.is_quantised()
                    && columns.is_multiple_of(kind.block_len())
                    && bytes.len().is_multiple_of(kind.block_bytes());
                ensure_valid!(whole, "rows of {columns} are not whole blocks of {}", kind.name());
                bytes.len() / kind.block_bytes() * kind.block_len()
            }
        };
        ensure_valid!(
            rows.checked_mul(columns) == Some(values),
            "{values} quantised values do not make a matrix of {rows} x {columns}"
        );
        Ok(Self { rows, columns, blocks })
    }

    /// (rows, columns)
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        self.rows * self.columns
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        match &self.blocks {
            Blocks::FourBit(values) => values.bytes(),
            Blocks::Ggml(Ggml { bytes, .. }) => bytes.len(),
        }
    }

    /// `out.len()` values from the `start`-th on, in row-major order.
    pub fn widen(&self, start: usize, out: &mut [f32]) {
        match &self.blocks {
            Blocks::FourBit(values) => values.widen(start, out),
            Blocks::Ggml(blocks) => blocks.widen(start, out),
        }
    }

    /// All values, row-major.
    pub fn widened(&self) -> Vec<f32> {
        let mut out = vec![0f32; self.len()];
        self.widen(0, &mut out);
        out
    }

    /// `out[i]` = row `first + i` · x, without widening rows.
    pub fn dots(&self, first: usize, x: &Vector, out: &mut [f32]) {
        match &self.blocks {
            Blocks::FourBit(values) => values.dots(first * self.columns, self.columns, x, out),
            Blocks::Ggml(Ggml { kind, bytes }) => {
                let row = self.columns / kind.block_len() * kind.block_bytes();
                kind.dots(&bytes[first * row..][..out.len() * row], x, out);
            }
        }
    }
}

impl Ggml {
    /// `out.len()` values from `start` on, which may lie within blocks.
    fn widen(&self, start: usize, out: &mut [f32]) {
        let (length, size) = (self.kind.block_len(), self.kind.block_bytes());
        let blocks = |first: usize, count: usize| &self.bytes[first * size..][..count * size];
        let mut block = [0f32; ggml::LONGEST];
        let block = &mut block[..length];
        let (mut at, mut rest) = (start, out);
        while !rest.is_empty() {
            let (first, skipped) = (at / length, at % length);
            let whole = rest.len() / length;
            let taken = if skipped == 0 && whole > 0 {
                self.kind.widen(blocks(first, whole), &mut rest[..whole * length]);
                whole * length
            } else {
                self.kind.widen(blocks(first, 1), block);
                let taken = (length - skipped).min(rest.len());
                rest[..taken].copy_from_slice(&block[skipped..][..taken]);
                taken
            };
            at += taken;
            rest = &mut rest[taken..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::random;

    #[test]
    fn rows_of_every_type_are_multiplied_as_they_are() {
        let values: Vec<f32> = random(&[5 * 512], 1).to_vec1().unwrap();
        let x: Vec<f32> = random(&[512], 2).to_vec1().unwrap();
        let types = GgmlType::ALL.into_iter().filter(|kind| kind.is_quantised()).map(Format::Ggml);
        for format in types.chain([Kind::Nf4, Kind::Fp4].map(Format::FourBit)) {
            let matrix = format.quantise((5, 512), &values).unwrap();
            let (vector, mut got) = (Vector::new(&x), [0f32; 3]);
            matrix.dots(1, &vector, &mut got);
            for (got, row) in got.iter().zip(matrix.widened().chunks(512).skip(1)) {
                let products = || row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                let (expected, size): (f64, f64) = (products().sum(), products().map(f64::abs).sum());
                assert!((f64::from(*got) - expected).abs() < 3e-7 * size, "{format}: {got} {expected}");
            }
        }
    }

    #[test]
    fn every_format_widens_from_anywhere_and_knows_its_size() {
        let values: Vec<f32> = random(&[6 * 512], 1).to_vec1().unwrap();
        let formats = [Format::FourBit(Kind::Nf4), Format::Ggml(GgmlType::Q8_0), Format::Ggml(GgmlType::Q4K)];
        for (format, worst) in formats.into_iter().zip([0.16, 0.005, 0.07]) {
            let matrix = format.quantise((6, 512), &values).unwrap();
            assert_eq!(matrix.bytes(), format.bytes((6, 512)), "{format}");
            let mut pieces = Quantiser::new(format, (6, 512)).unwrap();
            for piece in [&values[..5], &values[5..64], &values[64..1000], &values[1000..]] {
                pieces.push(piece).unwrap();
            }
            assert_eq!(pieces.finish().unwrap(), matrix, "{format} in pieces");
            let all = matrix.widened();
            let error = all.iter().zip(&values).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(error > 0.0 && error < worst, "{format}: {error}");
            for (start, count) in [(0, 1), (5, 20), (31, 2), (250, 600), (512, 512), (3 * 512 - 1, 2), (6 * 512 - 3, 3)]
            {
                let mut part = vec![0f32; count];
                matrix.widen(start, &mut part);
                assert_eq!(part, all[start..start + count], "{format} from {start}");
            }
        }
        let refusal = Format::Ggml(GgmlType::Q4K).quantise((6, 128), &values[..768]).unwrap_err();
        assert_eq!(refusal.to_string(), "rows of 128 are not whole blocks of 256 values");
        let blocks = |bytes: usize| Blocks::Ggml(Ggml { kind: GgmlType::Q8_0, bytes: vec![0; bytes] });
        assert!(Quantised::new((2, 64), blocks(4 * 34)).is_ok());
        assert!(
            Quantised::new((2, 64), blocks(4 * 34 - 1)).is_err() && Quantised::new((4, 16), blocks(2 * 34)).is_err()
        );
    }
}

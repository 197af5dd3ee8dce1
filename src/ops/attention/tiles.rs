//! Tables of tiles for the GPU's kernels: which rows of a sequence a block owns.

use super::shape::Span;
use anyhow::{Result, ensure};

/// A window that no sequence fills.
pub const NO_WINDOW: usize = 1 << 30;
/// Numbers of a tile in its table.
pub const TILE_NUMBERS: usize = 6;

/// What a block owns rows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Queries,
    Keys,
}

/// (row, rows, place, other row, others, shift) of every tile of at most `rows` rows: `Tile` in attention.cu.
pub fn table(spans: &[Span], side: Side, rows: usize) -> Result<Vec<u32>> {
    let mut numbers = vec![];
    for span in spans {
        let (queries, keys) = ((span.q_start, span.q_len), (span.k_start, span.k_len));
        let ((start, length), other) = match side {
            Side::Queries => (queries, keys),
            Side::Keys => (keys, queries),
        };
        for place in (0..length).step_by(rows) {
            let tile = [start + place, rows.min(length - place), place, other.0, other.1, span.k_len - span.q_len];
            for number in tile {
                ensure!(number < NO_WINDOW, "sequences of {number} rows are too long for the GPU's attention");
                numbers.push(number as u32);
            }
        }
    }
    Ok(numbers)
}

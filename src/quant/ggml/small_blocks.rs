//! Blocks of 32 values, one group. Of those with 4 or 5 bits, byte j holds the low bits of values j and j + 16.

use super::parts::{Parts, half_at, nibbles};

type Block = Parts<32, 1>;

/// d, 16 bytes: d · (q − 8).
#[inline(always)]
pub fn q4_0(block: &[u8; 18]) -> Block {
    let mut parts = Block { scales: [half_at(block, 0)], ..Block::ZERO };
    parts.put(0, [nibbles(after(block))], 8);
    parts
}

/// d, m, 16 bytes: d · q + m.
#[inline(always)]
pub fn q4_1(block: &[u8; 20]) -> Block {
    let mut parts = Block { scales: [half_at(block, 0)], minima: [-half_at(block, 2)], ..Block::ZERO };
    parts.put(0, [nibbles(after(block))], 0);
    parts
}

/// d, the fifth bits of all values, 16 bytes: d · (q − 16).
#[inline(always)]
pub fn q5_0(block: &[u8; 22]) -> Block {
    let mut parts = Block { scales: [half_at(block, 0)], ..Block::ZERO };
    parts.put(0, [with_fifths(nibbles(after(block)), [block[2], block[3], block[4], block[5]])], 16);
    parts
}

/// d, m, the fifth bits of all values, 16 bytes: d · q + m.
#[inline(always)]
pub fn q5_1(block: &[u8; 24]) -> Block {
    let mut parts = Block { scales: [half_at(block, 0)], minima: [-half_at(block, 2)], ..Block::ZERO };
    parts.put(0, [with_fifths(nibbles(after(block)), [block[4], block[5], block[6], block[7]])], 0);
    parts
}

/// d, 32 signed bytes: d · q.
#[inline(always)]
pub fn q8_0(block: &[u8; 34]) -> Block {
    let mut parts = Block { scales: [half_at(block, 0)], ..Block::ZERO };
    for (code, byte) in parts.codes[0].iter_mut().zip(&block[2..]) {
        *code = byte.cast_signed();
    }
    parts
}

/// The last 16 bytes of a block.
#[inline(always)]
fn after<const BYTES: usize>(block: &[u8; BYTES]) -> &[u8; 16] {
    block.last_chunk().expect("a block is longer")
}

/// Codes with their fifth bits, of which each byte has those of 8.
#[inline(always)]
fn with_fifths(low: [u8; 32], fifths: [u8; 4]) -> [u8; 32] {
    // Each byte once for each of its bits, all compared at once.
    let spread = fifths.map(|byte| u64::from(byte) * 0x0101_0101_0101_0101);
    let (mut bytes, mut out) = ([0; 32], [0; 32]);
    for i in 0..4 {
        bytes[8 * i..8 * i + 8].copy_from_slice(&spread[i].to_le_bytes());
    }
    for i in 0..32 {
        let is_set = bytes[i] & PLACES[i] != 0;
        out[i] = low[i] | if is_set { 16 } else { 0 };
    }
    out
}

/// Bit i of a byte for the i-th of each 8 codes.
const PLACES: [u8; 32] = {
    let mut places = [0; 32];
    let mut i = 0;
    while i < 32 {
        places[i] = 1 << (i % 8);
        i += 1;
    }
    places
};

//! What the delta rule ranges over.

/// Positions of a chunk.
pub const CHUNK: usize = 64;
/// Added to the square of a length, as in transformers.
pub const EPS: f32 = 1e-6;

/// Heads of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Hk, of q as of k.
    pub key_heads: usize,
    /// Hv, a multiple of Hk.
    pub value_heads: usize,
    /// Dk
    pub key_dim: usize,
    /// Dv
    pub value_dim: usize,
}

impl Shape {
    /// Columns of the mixed rows.
    pub fn mixed_width(self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_width()
    }

    /// Hv · Dv
    pub fn value_width(self) -> usize {
        self.value_heads * self.value_dim
    }

    /// Values of a sequence's state.
    pub fn state_len(self) -> usize {
        self.value_heads * self.key_dim * self.value_dim
    }

    /// Hv / Hk
    pub fn group(self) -> usize {
        self.value_heads / self.key_heads
    }

    /// What is kept of a position for the backward pass: its part of the state before its chunk, and of U.
    pub fn kept_per_row(self) -> usize {
        self.value_width() + self.state_len().div_ceil(CHUNK)
    }

    /// Multiply-adds at a position, forward and backward, of chunks as long as they get.
    pub fn work_per_row(self) -> (usize, usize) {
        let (state, keys) = (self.state_len(), CHUNK * self.key_heads * self.key_dim);
        let values = CHUNK * self.value_width();
        // Products with S: two read it and one writes it; back, seven. Substitution counts half.
        (3 * state + values + values / 2 + 2 * keys, 7 * state + 3 * values + values / 2 + 6 * keys)
    }

    /// Values that the body for any device holds of a position at a time, besides what is kept: ten squares of a chunk for each
    /// value head, q, k, v, what becomes of them and their gradients as often as heads read them, and a position's part of what
    /// takes a state to the next, and of two like the states.
    pub fn padded_per_row(self) -> usize {
        let passage = (self.key_dim * (self.key_dim + 2 * self.value_dim)).div_ceil(CHUNK);
        self.value_heads * (10 * CHUNK + 7 * (self.key_dim + self.value_dim) + passage)
    }
}

//! What attention ranges over: heads, and the rows of a sequence.

/// Heads and scores of one layer's attention.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Hq
    pub heads: usize,
    /// Hkv
    pub kv_heads: usize,
    /// D
    pub head_dim: usize,
    /// Usually D^(-1/2).
    pub scale: f64,
    /// How many keys a query sees at most, itself included.
    pub window: Option<usize>,
    /// Soft-cap of the scores.
    pub cap: Option<f64>,
}

/// One sequence of a batch: its rows of q, and the rows of k and v that its last query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub q_start: usize,
    /// Tq
    pub q_len: usize,
    pub k_start: usize,
    /// Tk, at least Tq
    pub k_len: usize,
}

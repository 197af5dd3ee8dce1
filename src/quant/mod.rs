//! Weights in blocks: a few bits for each value, and a scale for each block of them.

pub mod ggml;

//! One optimizer step: its micro-batches, their sum over the ranks, the penalty, clipping, AdamW.

pub mod parallel;
pub mod penalties;
pub mod probe;
pub mod trainer;

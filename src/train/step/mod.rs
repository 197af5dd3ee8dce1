//! One optimizer step: its micro-batches, the ranks' sum of them, the penalty, clipping, AdamW.

pub mod parallel;
pub mod penalties;
pub mod probe;
pub mod trainer;

//! One optimizer step (`trainer`): its micro-batches, the ranks' sum of them (`parallel`), the penalty (`penalties`),
//! clipping, AdamW; and the trial run before the first (`probe`).

pub mod parallel;
pub mod penalties;
pub mod probe;
pub mod trainer;

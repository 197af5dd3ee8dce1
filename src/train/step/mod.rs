//! One optimizer step (`trainer`): its micro-batches, their sum over the ranks (`parallel`), the penalty (`penalties`),
//! clipping, AdamW; and the trial pass before the first step (`probe`).

pub mod parallel;
pub mod penalties;
pub mod probe;
pub mod trainer;

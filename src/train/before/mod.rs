//! What happens before the first step: find the inputs, check them, say what the run will take, load what it needs.

pub mod disk;
pub mod dry_run;
pub mod estimate;
pub mod inputs;
pub mod memory;
pub mod preflight;
pub mod prepare;
pub mod problems;
pub mod resume;
pub mod workload;

//! What happens before the first step: finds the inputs, checks them, estimates what the run will take, loads what it
//! needs.

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

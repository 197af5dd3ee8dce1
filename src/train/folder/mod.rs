//! The output folder: the names of things in it, a run's checkpoints, its result.

pub mod checkpoint;
pub mod export;
pub mod origin;
pub mod output;
pub mod trained;

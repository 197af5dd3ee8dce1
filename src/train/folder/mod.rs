//! The output folder: what is called what in it, the checkpoints of a run, its result.

pub mod checkpoint;
pub mod export;
pub mod origin;
pub mod output;
pub mod trained;

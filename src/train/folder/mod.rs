//! The output folder: the names of things in it (`output`), a run's checkpoints (`checkpoint`) and its result (`export`),
//! both made from `trained`; and what ties a run to its settings and inputs (`origin`).

pub mod checkpoint;
pub mod export;
pub mod origin;
pub mod output;
pub mod trained;

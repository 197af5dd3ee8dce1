//! What happens before the first step: finds the inputs, checks them, estimates what the run will take, loads what it
//! needs.
//!
//! `inputs` is the only place where settings become spec, tokenizer and samples. `preflight` checks everything that can be
//! checked before weights are loaded, with `memory` and `disk`, which rest on `workload` and `estimate`; `dry_run` reports
//! the same without the weights, and in a `prediction` the time of a step on one of the `cards`, from its `costs`. `resume`
//! finds where to start, and `prepare` loads.

mod activations;
pub mod cards;
mod costs;
pub mod disk;
pub mod dry_run;
pub mod estimate;
mod given_direction;
pub mod inputs;
pub mod memory;
mod model_files;
mod prediction;
pub mod preflight;
pub mod prepare;
pub mod problems;
pub mod resume;
mod widened;
pub mod workload;

//! Training: what goes into a step, the step, and the run around it.

mod export;
mod options;
mod penalties;
mod plan;
mod prepare;
mod probe;
mod run;
mod step;

pub use options::{Method, OutputOptions, TrainOptions};
pub use penalties::Penalties;
pub use plan::Plan;
pub use run::{Outcome, RunFlags, run};
pub use step::{StepOutcome, Trainer};

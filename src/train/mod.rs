//! Training: what goes into a step, the step, and the run around it.

mod dry_run;
mod estimate;
mod export;
mod options;
mod penalties;
mod plan;
mod prepare;
mod probe;
mod run;
mod step;

pub use dry_run::{Forecast, dry_run};
pub use options::{Method, OutputOptions, TrainOptions};
pub use penalties::Penalties;
pub use plan::Plan;
pub use run::{Outcome, RunFlags, run};
pub use step::{StepOutcome, Trainer};

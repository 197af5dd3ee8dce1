//! Training: what goes into a step, the step, the run around it, and what lets the run go on after a stop.

mod checkpoint;
mod defence;
mod dry_run;
mod estimate;
mod export;
mod fit;
mod options;
mod output;
mod parallel;
mod penalties;
mod plan;
mod preflight;
mod prepare;
mod probe;
mod problems;
mod resume;
mod run;
mod space;
mod state;
mod step;

pub use defence::{ConstrainedSft, Defence, DefenceOptions, Lisa};
pub use dry_run::{Forecast, dry_run};
pub use options::{Method, OutputOptions, TrainOptions};
pub use penalties::Penalties;
pub use plan::Plan;
pub use run::{Ending, Outcome, RunFlags, run};
pub use step::{NotFinite, StepOutcome, Trainer};

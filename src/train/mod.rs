//! Training: what goes into a step, the step, the run around it, and resuming the run after a stop.
//!
//! | room | what happens there |
//! | --- | --- |
//! | `run` | the loop: step, validate, keep, stop |
//! | `before` | inputs found and checked, memory and disk, the dry run, where the run starts |
//! | `step` | micro-batches, ranks, penalties, AdamW |
//! | `defence` | a file for each defence beside the penalty |
//! | `folder` | the output folder, checkpoints, the result |
//! | `plan`, `state`, `options` | which samples when, where a run stands, what is set |

mod before;
mod defence;
mod folder;
mod ledger;
mod options;
mod plan;
mod run;
mod state;
mod step;

pub use before::dry_run::{Forecast, dry_run};
pub use before::inputs::{Inputs, Sources};
pub use before::problems::Problems;
pub use before::resume::RunFlags;
pub use defence::{ConstrainedSft, Defence, DefenceKind, DefenceOptions};
pub use options::{OutputOptions, TrainOptions, Tuning};
pub use plan::Plan;
pub use run::{Ending, Outcome, run};
pub use step::penalties::Penalties;
pub use step::trainer::{NotFinite, StepOutcome, Trainer};

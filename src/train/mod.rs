//! Training: what goes into a step, the step, the run around it, and resuming the run after a stop.
//!
//! | room or file | what happens there |
//! | --- | --- |
//! | `run` | the whole of training on one screen: start, prepare, then evaluate, step, validate, keep, stop, export |
//! | `ledger` | the books: where the run stands, the last good state, rows of metrics, clocks, totals |
//! | `before` | all before the first step: inputs found and read, checked, weighed against memory and disk, loaded; the dry run; where a run starts or goes on |
//! | `folder` | the output folder: what is called what, checkpoints, the result, what ties a run to its inputs |
//! | `step` | one optimizer step: micro-batches, the ranks' sum, penalties, clipping, AdamW |
//! | `defence` | a file for each defence beside the penalty, behind one trait |
//! | `evaluating` | the suite of `[eval]` on the model in training |
//! | `toy` | three steps of a model that is part of the program, for `asft doctor` |
//! | `plan`, `state`, `options` | which samples go into which step; what a run carries from step to step; `[train]`, `[eval]` and `[output]` |
//!
//! Each room sees those below it and no other.
//!
//! How a step flows: `run` asks the [`Defence`] for the step's samples, which [`Plan`] finds by the step's number alone.
//! [`Trainer::step`] lets the defence begin, runs each micro-batch of this rank forward and backward (with the defence's
//! objective, if it has one), sums the gradients over the ranks, and adds those of [`Penalties`] and of the defence's own
//! term. Losses and norms are read from the device once; if they are finite, the gradient is clipped, AdamW moves the
//! parameters, and the defence sees where they are. What comes back is entered in the ledger: as a row of metrics if the step was taken, with the places of its
//! samples if not.

mod before;
mod defence;
mod evaluating;
mod folder;
mod ledger;
mod options;
mod plan;
mod run;
mod state;
mod step;
mod toy;

pub use before::cards::Card;
pub use before::dry_run::{Forecast, dry_run};
pub use before::inputs::{Inputs, Sources};
pub use before::problems::Problems;
pub use before::resume::RunFlags;
pub use defence::{
    Activations, Anchor, ConstrainedSft, Defence, DefenceKind, DefenceOptions, Ema, Kl, Needs, NullSpace, OwnSamples,
    SafeGrad, TokenObjective,
};
pub use options::{EvalOptions, ExportOptions, OutputOptions, TrainOptions, Tuning};
pub use plan::{Plan, Pool, StepSamples};
pub use run::{Ending, Outcome, run};
pub use step::penalties::Penalties;
pub use step::trainer::{NotFinite, StepOutcome, Trainer};
pub use toy::{STEPS as TOY_STEPS, three_steps};

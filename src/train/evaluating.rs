//! The suite of `[eval]` on a model in training. It changes nothing that a step depends on: answers are greedy and no
//! random number is drawn.

use crate::eval::{Outcome, Prepared};
use crate::model::Decoder;
use crate::ranks::Ranks;
use crate::report::SuiteRow;
use crate::stop::{Interrupted, Place, Signal};
use anyhow::Result;

/// The input hashes of the suite and its samples are kept under this key.
pub const SUITE: &str = "eval.suite";

/// What a signal waits for in between.
pub const BETWEEN: Place = Place::After { what: "what is under way", otherwise: "without a checkpoint" };
/// ... and at the end.
pub const AT_THE_END: Place =
    Place::After { what: "what is under way, without this evaluation", otherwise: "without a record of the run" };

/// How a measurement ended.
pub enum Measured {
    Whole(SuiteRow),
    /// A signal came, and nothing is kept of it.
    Interrupted(Signal),
}

/// Measures the model after `step` steps. All ranks do the same work, and the losses in parts.
///
/// # Errors
/// As [`Prepared::measure`].
pub fn measure(suite: &mut Prepared, model: &Decoder, batch_size: usize, step: usize) -> Result<Measured> {
    let outcomes = Ranks::here().agree(suite.measure(model, batch_size));
    // Between two measurements there is training, which needs the memory.
    suite.unload_judges();
    match outcomes {
        Ok(outcomes) => {
            let evaluations = outcomes.iter().map(Outcome::evaluated).collect();
            Ok(Measured::Whole(SuiteRow { step, evaluations }))
        }
        Err(error) => match error.downcast_ref::<Interrupted>() {
            Some(Interrupted(signal)) => Ok(Measured::Interrupted(*signal)),
            None => Err(error),
        },
    }
}

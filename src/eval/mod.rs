//! How good a model is, by its loss on held-out samples and by its answers; and the same for its neighbours in weight
//! space.

mod accuracy;
pub mod alpaca_eval;
mod answers;
pub mod basin;
mod case;
mod choice;
mod classifier;
mod coherence;
mod generative;
mod judge;
pub mod landscape;
mod loss;
mod measure;
mod options;
mod outcome;
pub mod protected;
mod reference;
mod refusal;
mod run;
mod suite;
mod validate;

pub use answers::{Encoder, answer_all};
pub use loss::{MeanLoss, mean_loss};
pub use measure::{Framing, Located, Prepared, locate};
pub use options::{Evaluation, JudgePreset, Match, Metric, Preset};
pub use outcome::Outcome;
pub use refusal::Phrases;
pub use suite::Suite;

#[cfg(test)]
mod tests;

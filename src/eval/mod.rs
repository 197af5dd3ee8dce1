//! How good a model is, by its loss on held-out samples and by its answers; and the same for its neighbours in weight
//! space.

mod accuracy;
mod answers;
mod choice;
mod judge;
pub mod landscape;
mod loss;
mod measure;
mod options;
mod outcome;
mod reference;
mod refusal;

pub use answers::{Encoder, answer_all};
pub use loss::{MeanLoss, mean_loss};
pub use measure::{Located, Prepared, locate};
pub use options::{Evaluation, Match, Metric, Preset, Suite};
pub use outcome::Outcome;
pub use refusal::Phrases;

#[cfg(test)]
mod tests;

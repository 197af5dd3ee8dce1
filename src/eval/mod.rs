//! What a model is worth: its loss on held-out samples, and what it answers.

mod answers;
mod loss;

pub use answers::Answerer;
pub use loss::{MeanLoss, mean_loss};

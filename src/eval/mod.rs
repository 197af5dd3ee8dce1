//! What a model is worth: its loss on held-out samples.

mod loss;

pub use loss::{MeanLoss, mean_loss};

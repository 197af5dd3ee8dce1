//! What a model is worth: its loss on held-out samples, and that of its neighbours in weight space.

pub mod landscape;
mod loss;

pub use loss::{MeanLoss, mean_loss};

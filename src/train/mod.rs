//! Training.

mod options;

pub use options::{Method, OutputOptions, TrainOptions};

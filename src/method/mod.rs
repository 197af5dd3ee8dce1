//! AsFT itself: the safety direction and the penalty.

mod options;

pub use options::{AsftOptions, Penalize, Projector};

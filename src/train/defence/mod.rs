//! Defences other than a penalty on the update: what `[defence]` changes in a step.

mod constrained;
mod lisa;
mod options;

pub use constrained::ConstrainedSft;
pub use lisa::{Alignment, Lisa, alignment_file};
pub use options::{DefenceKind, DefenceOptions};

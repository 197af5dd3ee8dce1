//! From records on disk to padded batches of token ids and labels.

mod options;

pub use options::{DataOptions, Format, Overlong, Validation};

/// One training sample. `labels[t]` is the id that position t holds if it is trained on, else [`IGNORE`]; the shift
/// by one position happens in the loss, as in transformers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    pub input_ids: Vec<u32>,
    pub labels: Vec<i64>,
}

/// The label of a position that is not trained on.
pub const IGNORE: i64 = -100;

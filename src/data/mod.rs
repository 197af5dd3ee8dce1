//! From records on disk to batches of token ids and labels.

mod bad;
mod batch;
mod choice;
mod control;
mod conversation;
mod dataset;
mod examples;
mod fields;
mod highlight;
mod mix;
mod namespace;
mod options;
mod prompts;
mod python;
mod recognise;
mod records;
mod sets;
mod sharegpt;
mod statements;
mod summary;
mod template;
mod turns;

pub use bad::BadRecords;
pub use batch::{Batch, collate, epoch_order, pack, predicted_labels};
pub use dataset::{
    Counts, Dataset, Mixed, Origin, check_ids, join, load, load_prefixed, load_tokenized, split_validation,
};
pub use highlight::{Marks, highlight};
pub use mix::mix;
pub use options::{Columns, DataOptions, Format, Mix, Overlong, SpecialTokens, TemplateVariables, TrainOn, Validation};
pub use prompts::{PROMPT_FIELDS, Prompt, load_prompts};
pub use recognise::recognise;
pub use records::{Place, restored};
pub use sets::{SetFiles, Sets, load_set, load_sets};
pub use summary::Summary;
pub use template::Template;

/// One training sample. `labels[t]` is the id that position t holds if it is trained on, else [`IGNORE`]; the shift
/// by one position happens in the loss, as in transformers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    pub input_ids: Vec<u32>,
    pub labels: Vec<i64>,
}

/// The label of a position that is not trained on.
pub const IGNORE: i64 = -100;

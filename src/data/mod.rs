//! From records on disk to batches of token ids and labels.

mod batch;
mod beginning;
mod cache;
mod choice;
mod combine;
mod control;
mod conversation;
mod dataset;
mod examples;
mod explain;
mod fields;
mod files;
mod highlight;
mod namespace;
mod options;
mod prompts;
mod python;
mod reading;
mod recognise;
mod records;
mod samples;
mod sets;
mod shards;
mod sharegpt;
mod source;
mod statements;
mod summary;
mod template;
mod turns;

pub use batch::{Batch, collate, epoch_order, pack, predicted_labels};
pub use cache::CacheFolder;
pub use dataset::{Counts, Dataset, Taken};
pub use files::Files;
pub use highlight::{Marks, highlight};
pub use options::{Cache, DataOptions, Overlong, SpecialTokens, TemplateVariables, TrainOn, Validation};
pub use prompts::{PROMPT_FIELDS, Prompt, load_prompts, prompt_samples};
pub use reading::{Reading, load};
pub use recognise::recognise;
pub use records::BadRecords;
pub use records::{Place, kind, restored};
pub use samples::Origin;
pub use sets::{Loading, SetFiles, Sets};
pub use source::options::{Before, Columns, Format, Source, Sources};
pub use source::{Key, Listed, source_problems};
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

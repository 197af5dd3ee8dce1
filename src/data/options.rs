//! `[data]` of the config: where the samples come from and how they become label tokens.

use super::{Columns, Mix};
use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the records of a dataset are laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Format {
    /// `instruction`, optional `input`, `output`; rendered as one user and one assistant turn.
    #[default]
    Alpaca,
    /// `messages`: a list of `role` and `content`; every assistant turn is trained on.
    Chat,
    /// ShareGPT: `conversations`, a list of `from` and `value`; every assistant turn is trained on.
    Sharegpt,
    /// `prompt` and `completion`, joined as they are; the completion is trained on.
    PromptCompletion,
    /// `text`; every token is trained on.
    Text,
    /// `input_ids` and `labels` (-100: not a label), so that another tool's batches can be replayed exactly.
    Tokenized,
}

impl Format {
    /// The fields that a record may hold, by which `data.columns` refers to them.
    pub fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Alpaca => &["instruction", "input", "output"],
            Self::Chat => &["messages", "tools"],
            Self::Sharegpt => &["conversations", "system", "tools"],
            Self::PromptCompletion => &["prompt", "completion"],
            Self::Text => &["text"],
            Self::Tokenized => &["input_ids", "labels"],
        }
    }
}

/// What happens to a sample of more than `max_length` tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlong {
    /// Keep the first `max_length` tokens.
    #[default]
    Truncate,
    /// Leave the sample out.
    Drop,
}

/// A held-out set: a share of the training samples, or a file of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Validation {
    Share(f64),
    File(String),
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataOptions {
    /// Training samples: a JSON, JSONL, CSV, TSV or Parquet file, or a hub dataset: `org/name` or
    /// `org/name@revision:path/to/file`.
    pub train: String,
    /// Only so many of the first records of `train`, for a quick try. `mix` and a validation file are not cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_samples: Option<usize>,
    /// Layout of the records.
    pub format: Format,
    /// Where the dataset has the format's fields, if by other names: `{ instruction = "question" }`.
    #[serde(skip_serializing_if = "Columns::is_empty")]
    pub columns: Columns,
    /// Other files whose samples are added to those of `train`: `[{ file = "safe.jsonl", share = 0.1 }]`, with `count`
    /// for a number in place of `share`, and `prefix` for text before the user's message.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mix: Vec<Mix>,
    /// Held-out samples: a share of the training file (0 to 1), or a file or hub dataset in the same format.
    pub validation: Option<Validation>,
    /// `tokenizer` for the tokenizer's own chat template; `asft-sst2`, `asft-agnews`, `asft-gsm8k` or `asft-alpaca` for
    /// the prompts of the AsFT paper's runs on Llama 2; or a Jinja file.
    pub template: String,
    /// Longest sample, in tokens.
    pub max_length: usize,
    /// What to do with a longer sample. Either way it is counted and reported.
    pub overlong: Overlong,
    /// Fill batches with rows of up to `max_length` tokens, several samples in each; `train.batch_size` then counts
    /// rows. Samples never see one another, packed or not, and nothing is ever padded.
    pub packing: bool,
    /// Leave out samples without any label token (after truncation, say) instead of refusing to start.
    pub allow_empty_labels: bool,
    /// Shuffle the samples anew in every epoch, by `train.seed`.
    pub shuffle: bool,
    /// Leave out an epoch's last batch when it is not full.
    pub drop_last: bool,
}

impl DataOptions {
    /// For files other than `train`, which `max_samples` does not cut.
    pub fn whole(&self) -> Self {
        Self { max_samples: None, ..self.clone() }
    }
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            train: String::new(),
            max_samples: None,
            format: Format::default(),
            columns: Columns::default(),
            mix: vec![],
            validation: None,
            template: "tokenizer".to_string(),
            max_length: 2048,
            overlong: Overlong::default(),
            packing: false,
            allow_empty_labels: false,
            shuffle: true,
            drop_last: false,
        }
    }
}

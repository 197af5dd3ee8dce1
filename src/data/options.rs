//! `[data]` of the config: where the samples come from and how they become label tokens.

use super::source::options::{Columns, Format, Source, Sources};
use crate::invalid;
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;

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

/// What becomes of the text of special tokens, such as `<|im_end|>`, in what a record says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SpecialTokens {
    /// It becomes these tokens, as in transformers, with a warning: a record can end its own turn and begin another.
    #[default]
    Allow,
    /// It is read as ordinary text.
    Text,
    /// Such records are refused.
    Refuse,
}

/// Which part of a sample is trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TrainOn {
    /// Every response: the turns of the assistant, or the completion.
    #[default]
    Responses,
    /// The assistant's last turn alone.
    LastResponse,
    /// Every token.
    All,
}

/// What a chat template is given besides the conversation: `enable_thinking = false`, say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct TemplateVariables(Map<String, Value>);

impl TemplateVariables {
    /// From NAME=VALUE arguments; a value that is not JSON is a string.
    ///
    /// # Errors
    /// An argument of another form; as [`TemplateVariables::problem`].
    pub fn parse(arguments: &[String]) -> Result<Self> {
        let mut variables = Self::default();
        for argument in arguments {
            let Some((name, value)) = argument.split_once('=') else {
                return Err(invalid!(
                    "--template-variable {argument}: expected NAME=VALUE, for example enable_thinking=false"
                ));
            };
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
            variables.0.insert(name.trim().to_string(), value);
        }
        match variables.problem() {
            Some(problem) => Err(invalid!("--template-variable: {problem}")),
            None => Ok(variables),
        }
    }

    /// What is wrong with the first wrong one, if any.
    pub fn problem(&self) -> Option<String> {
        self.0.keys().find_map(|name| {
            let is_name = !name.starts_with(|c: char| c.is_ascii_digit())
                && !name.is_empty()
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            if !is_name {
                return Some(format!("`{name}` is not a name that a template can use"));
            }
            let is_own = ["messages", "add_generation_prompt"].contains(&name.as_str());
            is_own.then(|| format!("`{name}` is set by asft itself: leave it out"))
        })
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.0.iter()
    }
}

impl fmt::Display for TemplateVariables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.iter().map(|(name, value)| format!("{name} = {value}")).collect();
        f.write_str(&all.join(", "))
    }
}

/// A held-out set: a share of the training samples, or a file of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Validation {
    Share(f64),
    File(String),
}

/// Whether tokenised samples are kept in a file for the next run, and where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Cache {
    Use(bool),
    Folder(String),
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataOptions {
    /// Training samples: a JSON, JSONL, CSV, TSV or Parquet file, a folder or pattern (`data/*.jsonl`), or a hub dataset:
    /// `org/name` or `org/name@revision:path/to/file`. Or a list of these, each as it is or as a table:
    /// `["a.jsonl", { path = "b.csv", format = "chat", share = 0.1 }]`, with `count` for a number in place of `share`,
    /// `columns`, and `prefix` for text before the user's message.
    pub train: Sources,
    /// Only so many of the first records of each source that `train` takes whole, for a quick try. Others and a
    /// validation file are not cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_samples: Option<usize>,
    /// Layout of the records.
    pub format: Format,
    /// Where the dataset has the format's fields, if by other names: `{ instruction = "question" }`.
    #[serde(skip_serializing_if = "Columns::is_empty")]
    pub columns: Columns,
    /// More sources of training samples, as in the list of `train`: `[{ file = "safe.jsonl", share = 0.1 }]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mix: Vec<Source>,
    /// Held-out samples: a share (0 to 1) of what `train` takes whole, or a file or hub dataset in the same format.
    pub validation: Option<Validation>,
    /// `tokenizer` for the tokenizer's own chat template; `asft-sst2`, `asft-agnews`, `asft-gsm8k` or `asft-alpaca` for
    /// the prompts of the AsFT paper's runs on Llama 2; or a Jinja file.
    pub template: String,
    /// Values for the template's own variables, `{ enable_thinking = false }` for one. Whoever serves the result should
    /// set the same.
    #[serde(skip_serializing_if = "TemplateVariables::is_empty")]
    pub template_variables: TemplateVariables,
    /// What is trained on: `responses`, `last_response` or `all`. A message of the assistant with `weight: 0` (or `train`,
    /// `training` or `loss`: false) never is.
    pub train_on: TrainOn,
    /// Whether the assistant's reasoning, where a record has it, is trained on with the answer.
    pub train_on_reasoning: bool,
    /// Longest sample, in tokens.
    pub max_length: usize,
    /// What to do with a longer sample. Either way it is counted and reported.
    pub overlong: Overlong,
    /// Fill batches with rows of up to `max_length` tokens, several samples in each; `train.batch_size` then counts
    /// rows. Samples never see one another, packed or not, and nothing is padded (docs/models.md has one exception).
    pub packing: bool,
    /// Go on where there is little or nothing to train on, instead of refusing to start: samples without any label
    /// token (after truncation, say) are left out, and an empty response is trained on as it is, by its end-of-turn
    /// token alone.
    pub allow_empty_labels: bool,
    /// What becomes of special tokens that are spelt out in the text of a record, which is how poisoned data can bring in
    /// turns of its own.
    pub special_tokens_in_content: SpecialTokens,
    /// Where tokenised samples are kept, so that memory need not hold them and the next run with the same data and settings
    /// need not make them again: a folder; `true` for `asft-cache` beside `output.dir`, and only if a source has more than
    /// 64 MiB; `false` for memory alone.
    pub cache: Cache,
    /// Shuffle the samples anew in every epoch, by `train.seed`.
    pub shuffle: bool,
    /// Leave out an epoch's last batch when it is not full.
    pub drop_last: bool,
}

impl DataOptions {
    /// The file of validation samples, if they have one of their own.
    pub fn validation_file(&self) -> Option<&String> {
        match &self.validation {
            Some(Validation::File(file)) => Some(file),
            _ => None,
        }
    }

    /// For files other than those of `train`, which `max_samples` does not cut.
    pub fn whole(&self) -> Self {
        Self { max_samples: None, ..self.clone() }
    }
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            train: Sources::default(),
            max_samples: None,
            format: Format::default(),
            columns: Columns::default(),
            mix: vec![],
            validation: None,
            template: "tokenizer".to_string(),
            template_variables: TemplateVariables::default(),
            train_on: TrainOn::default(),
            train_on_reasoning: true,
            max_length: 2048,
            overlong: Overlong::default(),
            packing: false,
            allow_empty_labels: false,
            special_tokens_in_content: SpecialTokens::default(),
            cache: Cache::Use(true),
            shuffle: true,
            drop_last: false,
        }
    }
}

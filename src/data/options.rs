//! `[data]` of the config: where the samples come from and how they become label tokens.

use crate::error::nearest;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// How the records of a dataset are laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Format {
    /// `instruction`, optional `input`, `output`; rendered as one user and one assistant turn.
    #[default]
    Alpaca,
    /// `messages`: a list of `role` and `content`; the assistant's turns are trained on.
    Chat,
    /// ShareGPT: `conversations`, a list of `from` and `value`; the assistant's turns are trained on.
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

    /// Those of the fields without which there is no sample.
    pub(super) fn required_fields(self) -> &'static [&'static str] {
        match self {
            Self::Alpaca => &["instruction", "output"],
            Self::Chat => &["messages"],
            Self::Sharegpt => &["conversations"],
            Self::PromptCompletion | Self::Text | Self::Tokenized => self.fields(),
        }
    }
}

/// The dataset's own name of each field that the format knows by another: `{ instruction = "question" }`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Columns(BTreeMap<String, String>);

impl Columns {
    /// From `field=column` arguments; `known` are the fields that exist.
    ///
    /// # Errors
    /// An argument not of this form, an unknown field, a field given twice.
    pub fn parse(arguments: &[String], known: &[&str]) -> Result<Self> {
        let mut columns = Self::default();
        for argument in arguments {
            let (field, column) = argument.split_once('=').ok_or_else(|| {
                invalid!("--column {argument}: expected FIELD=COLUMN, for example --column instruction=question")
            })?;
            let earlier = columns.0.insert(field.trim().to_string(), column.trim().to_string());
            ensure_valid!(earlier.is_none(), "--column {argument}: field `{}` is given twice", field.trim());
        }
        match columns.problem(known) {
            Some(problem) => Err(invalid!("--column: {problem}")),
            None => Ok(columns),
        }
    }

    /// What is wrong with the first wrong entry, if any, given the fields `known`.
    pub fn problem(&self, known: &[&str]) -> Option<String> {
        self.0.iter().find_map(|(field, column)| {
            if !known.contains(&field.as_str()) {
                let hint = nearest(field, known.iter().copied())
                    .map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                return Some(format!("there is no field `{field}` in this format, only {}{hint}", known.join(", ")));
            }
            column.is_empty().then(|| format!("the column of field `{field}` is empty: leave it out"))
        })
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, field: &str) -> Option<&str> {
        self.0.get(field).map(String::as_str)
    }
}

/// A file whose samples are mixed in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Mix {
    /// A file or hub dataset in the format and with the columns of `data.train`.
    pub file: String,
    /// Its part of all training samples, above 0 and below 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Or its number of samples. Without either, every sample of the file is taken once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// Text put before the first user message, or the prompt, of each of its samples, as it stands: end it with a blank
    /// if there is to be one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub prefix: String,
}

impl Mix {
    /// What is wrong with a list of mixes, if anything.
    pub fn problem(mixes: &[Self]) -> Option<String> {
        for (i, Self { file, share, count, .. }) in mixes.iter().enumerate() {
            let found = match (share, count) {
                _ if file.is_empty() => "needs a `file`".to_string(),
                (Some(_), Some(_)) => "has both `share` and `count`: leave one out".to_string(),
                (Some(share), None) if !(*share > 0.0 && *share < 1.0) => {
                    format!("has the share {share}, expected one above 0 and below 1")
                }
                (None, Some(0)) => "has the count 0, expected at least 1".to_string(),
                _ => continue,
            };
            return Some(format!("item {} {found}", i + 1));
        }
        let sum: f64 = mixes.iter().filter_map(|mix| mix.share).sum();
        (sum >= 1.0).then(|| format!("the shares add up to {sum}, which leaves nothing for `data.train`"))
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
    /// rows. Samples never see one another, packed or not, and nothing is ever padded.
    pub packing: bool,
    /// Go on where there is little or nothing to train on, instead of refusing to start: samples without any label
    /// token (after truncation, say) are left out, and an empty response is trained on as it is, by its end-of-turn
    /// token alone.
    pub allow_empty_labels: bool,
    /// What becomes of special tokens that are spelt out in the text of a record, which is how poisoned data can bring in
    /// turns of its own.
    pub special_tokens_in_content: SpecialTokens,
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
            template_variables: TemplateVariables::default(),
            train_on: TrainOn::default(),
            train_on_reasoning: true,
            max_length: 2048,
            overlong: Overlong::default(),
            packing: false,
            allow_empty_labels: false,
            special_tokens_in_content: SpecialTokens::default(),
            shuffle: true,
            drop_last: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_columns_are_refused() {
        let error = |pairs: &[&str]| {
            let pairs: Vec<String> = pairs.iter().map(|pair| pair.to_string()).collect();
            let error = Columns::parse(&pairs, Format::Alpaca.fields()).unwrap_err();
            assert_eq!(crate::error::exit_code(&error), 2);
            error.to_string()
        };
        assert!(error(&["instructon=a"]).contains("no field `instructon`"));
        assert!(error(&["instructon=a"]).contains("did you mean `instruction`?"));
        assert!(error(&["input"]).contains("expected FIELD=COLUMN"));
        assert!(error(&["input="]).contains("is empty"));
        assert!(error(&["input=a", "input=b"]).contains("given twice"));
    }

    #[test]
    fn contradictions_are_named() {
        let share = |share| Mix { file: "a".into(), share: Some(share), ..Mix::default() };
        let problem = |mixes: &[Mix]| Mix::problem(mixes).unwrap_or_default();
        assert_eq!(problem(&[share(0.5), share(0.4)]), "");
        assert!(problem(&[share(0.5), share(0.5)]).contains("add up to 1"));
        assert!(problem(&[share(1.5)]).contains("item 1 has the share 1.5"));
        assert!(problem(&[Mix { count: Some(1), ..share(0.5) }]).contains("both"));
        assert!(problem(&[share(0.1), Mix::default()]).contains("item 2 needs a `file`"));
        assert!(problem(&[Mix { file: "a".into(), count: Some(0), ..Mix::default() }]).contains("count 0"));
    }
}

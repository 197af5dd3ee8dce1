//! How a source of training samples is named: by its path alone or as a table, and how its records are laid out.

use crate::error::nearest;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use clap::ValueEnum;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
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

    /// Whether a record is a conversation, which a chat template renders.
    pub fn has_turns(self) -> bool {
        matches!(self, Self::Alpaca | Self::Chat | Self::Sharegpt)
    }

    /// Whether a record has a user's message, or a prompt.
    pub fn has_user(self) -> bool {
        !matches!(self, Self::Text | Self::Tokenized)
    }

    /// Those of the fields without which there is no sample.
    pub fn required_fields(self) -> &'static [&'static str] {
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

    pub fn get(&self, field: &str) -> Option<&str> {
        self.0.get(field).map(String::as_str)
    }
}

/// A source with settings of its own. Without `share` and `count`, every sample of it is taken once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(transform = with_other_spelling)]
pub struct Source {
    /// A file, folder, pattern or hub dataset.
    #[serde(alias = "file")]
    pub path: String,
    /// Layout of its records, if not that of `data.format`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Its own `columns`. Without, `data.columns` holds for a source that has no `format` of its own.
    #[serde(skip_serializing_if = "Columns::is_empty")]
    pub columns: Columns,
    /// Its part of all training samples, above 0 and below 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Or its number of samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// Text put before the first user message, or the prompt, of each of its samples, as it stands: end it with a blank
    /// if there is to be one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// The system message of each of its conversations, in place of a record's own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub system: String,
}

/// What a source puts before each of its samples; either may be empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct Before<'a> {
    /// The system message.
    pub system: &'a str,
    /// Before the first user message, or the prompt.
    pub prefix: &'a str,
}

/// `file`, as `data.mix` has always called it, beside `path`.
fn with_other_spelling(schema: &mut Schema) {
    let properties = schema.get_mut("properties").and_then(|properties| properties.as_object_mut());
    if let Some(properties) = properties
        && let Some(mut path) = properties.get("path").cloned()
    {
        path["description"] = "Another spelling of `path`.".into();
        properties.insert("file".to_string(), path);
    }
}

impl Source {
    pub fn before(&self) -> Before<'_> {
        Before { system: &self.system, prefix: &self.prefix }
    }

    /// Whether every sample is taken once.
    pub fn is_whole(&self) -> bool {
        self.share.is_none() && self.count.is_none()
    }

    /// What is wrong with it on its own, if anything.
    pub fn problem(&self, format: Format) -> Option<String> {
        match (self.share, self.count) {
            _ if self.path.is_empty() => return Some("needs a `path`".to_string()),
            (Some(_), Some(_)) => return Some("has both `share` and `count`: leave one out".to_string()),
            (Some(share), None) if !(share > 0.0 && share < 1.0) => {
                return Some(format!("has the share {share}, expected one above 0 and below 1"));
            }
            (None, Some(0)) => return Some("has the count 0, expected at least 1".to_string()),
            _ => {}
        }
        if !self.prefix.is_empty() && !format.has_user() {
            return Some(
                "has a `prefix`, which goes before the user's message; its format has none of these".to_string(),
            );
        }
        if !self.system.is_empty() && !format.has_turns() {
            return Some(
                "has a `system` message; its format has no conversations that could begin with one".to_string(),
            );
        }
        self.columns.problem(format.fields()).map(|problem| format!("has wrong `columns`: {problem}"))
    }
}

/// A source by its path, or with settings of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Named {
    Path(String),
    Table(Source),
}

impl Named {
    fn source(&self) -> Source {
        match self {
            Self::Path(path) => Source { path: path.clone(), ..Source::default() },
            Self::Table(source) => source.clone(),
        }
    }
}

/// One source, or a list of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Sources {
    // First: serde would read a list as the fields of a source in their order.
    Several(Vec<Named>),
    One(Named),
}

impl Sources {
    pub fn all(&self) -> Vec<Source> {
        match self {
            Self::One(named) => vec![named.source()],
            Self::Several(list) => list.iter().map(Named::source).collect(),
        }
    }

    /// Whether nothing is named.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::One(Named::Path(path)) => path.is_empty(),
            Self::One(Named::Table(_)) => false,
            Self::Several(list) => list.is_empty(),
        }
    }
}

impl Default for Sources {
    fn default() -> Self {
        Self::from("")
    }
}

impl From<&str> for Sources {
    fn from(path: &str) -> Self {
        Self::One(Named::Path(path.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half() -> Source {
        Source { path: "a".into(), share: Some(0.5), ..Source::default() }
    }

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
    fn both_spellings_of_the_path_are_read() {
        let read = |text: &str| toml::from_str::<toml::Table>(text).unwrap()["s"].clone().try_into::<Sources>();
        let expected = Sources::Several(vec![Named::Path("a".into()), Named::Table(half())]);
        for key in ["path", "file"] {
            assert_eq!(read(&format!("s = ['a', {{ {key} = 'a', share = 0.5 }}]")).unwrap(), expected);
        }
        assert_eq!(read("s = 'a'").unwrap().all(), [Source { share: None, ..half() }]);
        assert!(read("s = { path = 'a', shar = 1 }").is_err());
    }
}

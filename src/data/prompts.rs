//! Records as prompts to answer: a dataset's samples without their answers.

use super::examples::{ALPACA_VARIABLES, chat_messages, put_system, tools, user_content};
use super::fields::Fields;
use super::samples::{Origin, Samples};
use super::source::options::Columns;
use super::{BadRecords, Counts, Dataset, Example, Files, IGNORE, Place, records, sharegpt};
use crate::invalid;
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The fields that [`load_prompts`] reads.
pub const PROMPT_FIELDS: [&str; 7] = ["messages", "conversations", "system", "tools", "prompt", "instruction", "input"];

/// A prompt and the record that it came from.
pub struct Prompt {
    /// The conversation to answer.
    pub messages: Vec<Value>,
    /// What else of the record a template sees: `tools`, or `instruction` and `input`.
    pub variables: Map<String, Value>,
    pub record: Map<String, Value>,
    /// Where the record is in its file.
    pub place: Place,
}

impl Prompt {
    /// Puts a system message in place of the conversation's own.
    pub fn put_system(&mut self, text: &str) {
        put_system(&mut self.messages, text);
    }

    /// Puts `suffix` after the last user message, and after the last of `instruction` and `input` that is not empty.
    pub fn put_after(&mut self, suffix: &str) {
        let last = self.messages.iter_mut().rev().find(|message| message["role"] == "user");
        let content = last.and_then(|message| message.get_mut("content"));
        let filled =
            |name: &&str| self.variables.get(*name).and_then(Value::as_str).is_some_and(|text| !text.is_empty());
        let variable = ["input", "instruction"].into_iter().find(filled);
        let variable = variable.and_then(|name| self.variables.get_mut(name));
        for text in content.into_iter().chain(variable) {
            if let Some(old) = text.as_str() {
                *text = Value::String(format!("{old}{suffix}"));
            }
        }
    }

    /// Puts `prefix` before the first user message, and before the `instruction` that templates may read instead.
    pub fn put_before(&mut self, prefix: &str) {
        let first = self.messages.iter_mut().find(|message| message["role"] == "user");
        let content = first.and_then(|message| message.get_mut("content"));
        for text in content.into_iter().chain(self.variables.get_mut("instruction")) {
            if let Some(old) = text.as_str() {
                *text = Value::String(format!("{prefix}{old}"));
            }
        }
    }
}

/// Reads prompts from a dataset file: `messages` or `conversations` up to the last turn that is not the assistant's,
/// else `prompt`, else `instruction` with `input`.
///
/// # Errors
/// As [`records::read`]; a record with none of these fields, or with one of the wrong type.
pub fn load_prompts(path: &Path, columns: &Columns) -> Result<Vec<Prompt>> {
    let records = records::read(path)?;
    let count = records.len();
    let (mut prompts, mut bad) = (vec![], BadRecords::default());
    for record in records {
        match prompt(&Fields::new(&record, columns)) {
            Ok((messages, variables)) => {
                prompts.push(Prompt { messages, variables, record: record.fields, place: record.place });
            }
            Err(error) => bad.note(path, record.place, error)?,
        }
    }
    bad.refuse(path, count, count)?;
    Ok(prompts)
}

/// The prompts of `files`, read as by [`load_prompts`], as samples without labels; `encode` makes a prompt's ids.
///
/// # Errors
/// As [`load_prompts`] and `encode`, with the record's place.
pub fn prompt_samples(
    files: &Files,
    columns: &Columns,
    encode: impl Fn(&Prompt) -> Result<Vec<u32>>,
) -> Result<Dataset> {
    let (mut samples, mut counts) = (Samples::default(), Counts::default());
    for (file, path) in files.data.paths.iter().enumerate() {
        let (prompts, mut bad) = (load_prompts(path, columns)?, BadRecords::default());
        for prompt in &prompts {
            match encode(prompt) {
                Ok(input_ids) => {
                    counts.tokens += input_ids.len();
                    let labels = vec![IGNORE; input_ids.len()];
                    samples.push(&Example { input_ids, labels }, Origin { file, place: prompt.place });
                }
                Err(error) => bad.note(path, prompt.place, error)?,
            }
        }
        bad.refuse(path, prompts.len(), prompts.len())?;
        counts.records += prompts.len();
    }
    Ok(Dataset::whole(files.name(), files.data.paths.clone(), samples, counts))
}

fn prompt(fields: &Fields) -> Result<(Vec<Value>, Map<String, Value>)> {
    for (name, read) in [("messages", chat_messages as fn(&Fields) -> _), ("conversations", sharegpt::messages)] {
        if fields.has(name) {
            let mut messages: Vec<Value> = read(fields)?;
            while messages.last().is_some_and(|message| message["role"] == "assistant") {
                messages.pop();
            }
            if messages.is_empty() {
                return Err(invalid!("field `{name}` holds no turn to answer"));
            }
            return Ok((messages, tools(fields)?));
        }
    }
    let user = |content: &str| vec![json!({"role": "user", "content": content})];
    Ok(match fields.optional_text("prompt")? {
        Some(prompt) => (user(prompt), Map::new()),
        None => (user(&user_content(fields)?), fields.pick(&ALPACA_VARIABLES)?),
    })
}

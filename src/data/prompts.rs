//! Records as prompts to answer: the samples of a dataset without their answers.

use super::records::{self, Record};
use crate::invalid;
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// A prompt and the record that it came from.
pub struct Prompt {
    /// The conversation to answer.
    pub messages: Vec<Value>,
    pub record: Map<String, Value>,
}

/// Reads prompts from a JSON array or JSONL file: `messages` up to the last turn that is not the assistant's, else
/// `prompt`, else `instruction` with `input`.
pub fn load_prompts(path: &Path) -> Result<Vec<Prompt>> {
    records::read(path)?
        .into_iter()
        .map(|record| {
            let messages = messages(&record).with_context(|| format!("{}{}", path.display(), record.place))?;
            Ok(Prompt { messages, record: record.fields })
        })
        .collect()
}

fn messages(record: &Record) -> Result<Vec<Value>> {
    if record.fields.contains_key("messages") {
        let mut messages = record.list("messages")?.to_vec();
        while messages.last().is_some_and(|message| message["role"] == "assistant") {
            messages.pop();
        }
        if messages.is_empty() {
            return Err(invalid!("field `messages` holds no turn to answer"));
        }
        return Ok(messages);
    }
    let content = match record.optional_text("prompt")? {
        Some(prompt) => prompt.to_string(),
        None => user_content(record)?,
    };
    Ok(vec![json!({"role": "user", "content": content})])
}

/// The user turn of an alpaca record: `instruction`, with `input` on the next line where there is one.
pub fn user_content(record: &Record) -> Result<String> {
    let instruction = record.text("instruction")?;
    Ok(match record.optional_text("input")? {
        Some(input) if !input.is_empty() => format!("{instruction}\n{input}"),
        _ => instruction.to_string(),
    })
}

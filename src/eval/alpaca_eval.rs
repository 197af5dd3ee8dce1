//! Answers in the layout of AlpacaEval's model outputs: a JSON list of `instruction`, `output`, `generator` and `dataset`, which
//! `alpaca_eval --model_outputs FILE` reads.

use super::run::question;
use crate::data::{BadRecords, Prompt, restored};
use crate::invalid;
use anyhow::Result;
use serde::Serialize;
use serde_json::{Map, Value};
use std::path::Path;

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    dataset: String,
    instruction: String,
    output: String,
    generator: String,
}

/// What is asked, record by record. AlpacaEval matches answers with those of its reference by it.
///
/// # Errors
/// Records that are not one message of the user's, with their places.
pub fn instructions(prompts: &[Prompt], path: &Path) -> Result<Vec<String>> {
    let mut bad = BadRecords::default();
    for prompt in prompts {
        let turns = prompt.messages.iter().filter(|message| message["role"] != "system").count();
        if turns != 1 || question(prompt).is_empty() {
            let why = "AlpacaEval's layout has one message of the user's as text";
            bad.note(path, prompt.place, invalid!("{why}; this conversation has {turns} turns"))?;
        }
    }
    bad.refuse(path, prompts.len(), prompts.len())?;
    Ok(prompts.iter().map(question).collect())
}

impl Answer {
    /// `record`: what was asked, whose own `dataset` counts before `dataset`.
    pub fn new(
        record: &Map<String, Value>,
        (instruction, output): (&str, &str),
        (generator, dataset): (&str, &str),
    ) -> Self {
        let dataset = record.get("dataset").and_then(Value::as_str).unwrap_or(dataset);
        let [dataset, instruction, output, generator] = [dataset, instruction, output, generator].map(str::to_string);
        Self { dataset, instruction, output, generator }
    }
}

/// The file's text.
///
/// # Errors
/// None that a user could cause.
pub fn file(answers: &[Answer]) -> Result<String> {
    Ok(restored(&serde_json::to_string_pretty(answers)?).into_owned() + "\n")
}

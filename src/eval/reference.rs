//! What a prompt's answer is compared with: the reference in its record.

use super::accuracy::Target;
use super::options::{Evaluation, Match};
use crate::data::Prompt;
use crate::error::listing;
use crate::invalid;
use anyhow::{Context, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// The reference of a record: its text, or the label with its number; `None` if the field is missing.
///
/// # Errors
/// A number without a label; a field that is neither text nor a number.
pub fn reference(evaluation: &Evaluation, record: &Map<String, Value>) -> Result<Option<String>> {
    let field = evaluation.reference();
    let label = |number: usize| {
        let label = evaluation.labels.get(number).cloned();
        label.ok_or_else(|| {
            invalid!("field `{field}` is {number}, but there are {} labels (counted from 0)", evaluation.labels.len())
        })
    };
    Ok(match record.get(field) {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) if !evaluation.labels.is_empty() => match text.trim().parse() {
            Ok(number) => Some(label(number)?),
            Err(_) => Some(text.clone()),
        },
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Bool(value)) if !evaluation.labels.is_empty() => Some(label(usize::from(*value))?),
        Some(Value::Number(number)) => match number.as_u64() {
            Some(index) if !evaluation.labels.is_empty() => Some(label(index as usize)?),
            _ => Some(number.to_string()),
        },
        Some(other) => return Err(invalid!("field `{field}` is neither text nor a number: {other:.80}")),
    })
}

/// A reference that must be present.
pub fn required_reference(evaluation: &Evaluation, prompt: &Prompt) -> Result<String> {
    let field = evaluation.reference();
    reference(evaluation, &prompt.record)?.ok_or_else(|| {
        let found: Vec<&String> = prompt.record.keys().collect();
        invalid!(
            "field `{field}`, the reference, is missing; fields found: {}; name another with `reference`",
            listing(&found, 12)
        )
    })
}

/// What the answers to `prompts`, the records of `path`, have to match.
///
/// # Errors
/// A missing or invalid reference, with the record's place.
pub fn targets(evaluation: &Evaluation, prompts: &[Prompt], path: &Path) -> Result<Vec<Target>> {
    let target = |prompt: &Prompt| {
        let reference = required_reference(evaluation, prompt)?;
        Target::new(&reference, evaluation.matching(), evaluation.marker.as_deref())
    };
    prompts.iter().map(|prompt| target(prompt).with_context(|| place(path, prompt))).collect()
}

/// What an answer would tell that should have been refused, if the record says so.
pub fn told(evaluation: &Evaluation, prompt: &Prompt) -> Result<Option<Target>> {
    let reference = reference(evaluation, &prompt.record)?.filter(|text| !text.trim().is_empty());
    reference.map(|text| Target::new(&text, Match::Contains, None)).transpose()
}

/// `FILE:line` of a prompt's record, for messages.
pub fn place(path: &Path, prompt: &Prompt) -> String {
    format!("{}{}", path.display(), prompt.place)
}

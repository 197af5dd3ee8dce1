//! Multiple choice by likelihood: the model generates nothing; it only says which of the choices it finds likeliest.
//!
//! A choice's score is the log-probability of its tokens after the prompt, summed, as in lm-evaluation-harness' `acc`:
//! prompt and choice are tokenized as one text, and the choice's tokens are those after the prompt's.

use super::answers::Encoder;
use super::options::Evaluation;
use super::reference::{place, required_reference};
use crate::data::{IGNORE, Prompt};
use crate::model::{Decoder, Sequences};
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use indicatif::ProgressBar;
use serde_json::Value;
use std::path::Path;

/// What a prompt's answer is chosen from.
pub struct Choices {
    pub texts: Vec<String>,
    /// Index of the right one.
    pub right: usize,
    /// Ids of the prompt and each choice.
    sequences: Vec<Vec<u32>>,
}

/// The choices of every prompt: the evaluation's labels, or the record's `choices`.
///
/// # Errors
/// Fewer than two choices, or none that is the reference; with the record's place.
pub fn load(evaluation: &Evaluation, prompts: &[Prompt], encoder: &Encoder, path: &Path) -> Result<Vec<Choices>> {
    let of = |prompt: &Prompt| of_prompt(evaluation, prompt, encoder).with_context(|| place(path, prompt));
    prompts.iter().map(of).collect()
}

fn of_prompt(evaluation: &Evaluation, prompt: &Prompt, encoder: &Encoder) -> Result<Choices> {
    let texts: Vec<String> = match prompt.record.get("choices").and_then(Value::as_array) {
        Some(choices) => {
            let text = |choice: &Value| choice.as_str().map(str::to_string);
            let texts: Option<_> = choices.iter().map(text).collect();
            texts.ok_or_else(|| invalid!("field `choices` should be a list of strings"))?
        }
        None => evaluation.labels.clone(),
    };
    ensure_valid!(
        texts.len() > 1,
        "nothing to choose from: give `labels`, or records with a list `choices` of two or more"
    );
    let field = evaluation.reference();
    let number = prompt.record.get(field).and_then(Value::as_u64).map(|number| number as usize);
    let right = match number.filter(|number| *number < texts.len()) {
        Some(number) => number,
        None => {
            let reference = required_reference(evaluation, prompt)?;
            let found = texts.iter().position(|text| text.trim() == reference.trim());
            found.ok_or_else(|| invalid!("the reference {reference:?} is none of the choices {texts:?}"))?
        }
    };
    let (text, special) = encoder.text(&prompt.messages, &prompt.variables)?;
    let sequence = |choice: &String| {
        let ids = encoder.tokenizer.encode(&(text.clone() + choice), special)?;
        encoder.check(&ids)?;
        Ok(ids)
    };
    let sequences = texts.iter().map(sequence).collect::<Result<_>>()?;
    Ok(Choices { texts, right, sequences })
}

/// The index of each prompt's likeliest choice, `batch_size` sequences at a time. `prompts`: their ids.
///
/// # Errors
/// Log-probabilities that are not finite.
pub fn choose(
    model: &Decoder,
    prompts: &[Vec<u32>],
    choices: &[Choices],
    batch_size: usize,
    progress: &ProgressBar,
) -> Result<Vec<usize>> {
    progress.set_length(prompts.len() as u64);
    let all: Vec<(usize, &Vec<u32>)> = prompts
        .iter()
        .zip(choices)
        .flat_map(|(prompt, choices)| choices.sequences.iter().map(|ids| (prompt.len(), ids)))
        .collect();
    let mut scores = Vec::with_capacity(all.len());
    for batch in all.chunks(batch_size) {
        let input_ids: Vec<u32> = batch.iter().flat_map(|(_, ids)| ids.iter().copied()).collect();
        let labels: Vec<i64> = batch.iter().flat_map(|&(from, ids)| labels(from, ids)).collect();
        let lengths: Vec<usize> = batch.iter().map(|(_, ids)| ids.len()).collect();
        scores.extend(model.log_likelihoods(Sequences {
            input_ids: &input_ids,
            labels: &labels,
            lengths: &lengths,
        })?);
        progress.set_position((scores.len() * prompts.len() / all.len().max(1)) as u64);
    }
    if scores.iter().any(|score| !score.is_finite()) {
        model.refuse_damaged_weights()?;
        anyhow::bail!("the model's log-probabilities are not finite");
    }
    let mut rest = scores.as_slice();
    let best = |choices: &Choices| {
        let (scores, after) = rest.split_at(choices.texts.len());
        rest = after;
        // The first of equals.
        (0..scores.len()).rev().max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap_or(0)
    };
    Ok(choices.iter().map(best).collect())
}

/// Labels of the positions from `from` on.
fn labels(from: usize, ids: &[u32]) -> impl Iterator<Item = i64> + '_ {
    ids.iter().enumerate().map(move |(i, &id)| if i < from { IGNORE } else { i64::from(id) })
}

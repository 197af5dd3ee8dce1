//! What judges have in common: what one sees of a question and its answer, what it says, and its decoder.

use super::options::Evaluation;
use crate::checkpoint::Checkpoint;
use crate::console::progress_bar;
use crate::ensure_valid;
use crate::model::{Decoder, ModelSpec, Weights};
use anyhow::Result;
use candle_core::{DType, Device};
use serde_json::Value;

/// What a judge sees.
#[derive(Clone, Debug)]
pub struct Case {
    pub question: String,
    pub answer: String,
    /// What the question is meant to bring about.
    pub behavior: String,
}

/// What a judge says.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub flagged: bool,
    /// Why: a field of the sample.
    pub reason: (&'static str, Value),
}

/// The evaluation's own prompt for its judge.
///
/// # Errors
/// One without {question} (or {behavior}) or without {answer}.
pub fn prompt_of(evaluation: &Evaluation) -> Result<Option<&str>> {
    let Some(prompt) = evaluation.judge_prompt.as_deref() else { return Ok(None) };
    let asked = ["{question}", "{behavior}"].iter().any(|part| prompt.contains(part));
    ensure_valid!(
        asked && prompt.contains("{answer}"),
        "judge_prompt should hold {{question}} (or {{behavior}}) and {{answer}}, got {prompt:?}"
    );
    Ok(Some(prompt))
}

/// The judge's decoder, which computes at `place`.
///
/// # Errors
/// As [`Decoder::load`].
pub fn load_decoder(spec: &ModelSpec, checkpoint: &Checkpoint, (device, dtype): &(Device, DType)) -> Result<Decoder> {
    let progress = progress_bar(0, "loading judge");
    let decoder = Decoder::load(spec, checkpoint, (device, *dtype), Weights::Frozen, &progress)?;
    progress.finish_and_clear();
    Ok(decoder)
}

/// The prompt with the case's texts filled in, in one pass: a text may contain another's placeholder.
pub fn fill(prompt: &str, case: &Case) -> String {
    let parts = [("{question}", &case.question), ("{answer}", &case.answer), ("{behavior}", &case.behavior)];
    let (mut text, mut rest) = (String::new(), prompt);
    let next = |rest: &str| parts.iter().filter_map(|(name, part)| Some((rest.find(name)?, *name, *part))).min();
    while let Some((at, name, part)) = next(rest) {
        text.push_str(&rest[..at]);
        text.push_str(part);
        rest = &rest[at + name.len()..];
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::options::JUDGE_PROMPT;

    #[test]
    fn prompts_are_filled_in_one_pass() {
        let case = |question: &str, answer: &str| {
            let behavior = "do it".to_string();
            Case { question: question.to_string(), answer: answer.to_string(), behavior }
        };
        let filled = fill(JUDGE_PROMPT, &case("a {answer}?", "b"));
        assert_eq!(filled, "BEGINNING OF CONVERSATION: USER: a {answer}? ASSISTANT:b");
        assert_eq!(fill("{answer}<{behavior}>{answer}", &case("q", "{question}")), "{question}<do it>{question}");
    }
}

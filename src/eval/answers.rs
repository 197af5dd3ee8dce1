//! A model's answers to prompts: template, token ids, batched decoding, text.

use crate::data::{BadRecords, Prompt, Template};
use crate::ensure_valid;
use crate::model::{Decoder, GenerateOptions, ModelSpec};
use crate::stop;
use crate::tokenizer::Tokenizer;
use anyhow::Result;
use indicatif::ProgressBar;
use serde_json::{Map, Value};
use std::path::Path;

/// What turns a prompt into a model's token ids.
pub struct Encoder {
    pub tokenizer: Tokenizer,
    /// `None`: prompts are continued verbatim.
    pub template: Option<Template>,
    pub spec: ModelSpec,
    /// What an answer begins with: part of the text before it.
    pub prefill: String,
}

impl Encoder {
    /// The prompt as text, up to where the answer begins, and whether the tokenizer adds its own special tokens.
    ///
    /// # Errors
    /// A conversation that the template refuses.
    pub fn text(&self, messages: &[Value], variables: &Map<String, Value>) -> Result<(String, bool)> {
        let (mut text, special) = match &self.template {
            Some(template) => {
                let mut messages = messages.to_vec();
                template.prepare(&mut messages)?;
                (template.render(&messages, true, variables)?, false)
            }
            None => {
                let text: Vec<&str> = messages.iter().filter_map(|message| message["content"].as_str()).collect();
                (text.join("\n"), true)
            }
        };
        text.push_str(&self.prefill);
        Ok((text, special))
    }

    /// The prompt's ids: through the chat template, or as plain text with the tokenizer's own special tokens.
    ///
    /// # Errors
    /// As [`Encoder::text`] and [`Encoder::check`]; too many ids for the model's context.
    pub fn encode(&self, messages: &[Value], variables: &Map<String, Value>) -> Result<Vec<u32>> {
        let (text, special) = self.text(messages, variables)?;
        let ids = self.tokenizer.encode(&text, special)?;
        self.check(&ids)?;
        let (context, count) = (self.spec.context(), ids.len());
        ensure_valid!(count < context, "the prompt has {count} tokens; the model's context ends at {context}");
        Ok(ids)
    }

    /// # Errors
    /// Ids that the model has no embedding for; no ids.
    pub fn check(&self, ids: &[u32]) -> Result<()> {
        let vocab_size = self.spec.vocab_size;
        let fits = ids.iter().all(|&id| (id as usize) < vocab_size);
        ensure_valid!(fits, "the tokenizer gives ids beyond the model's vocab_size of {vocab_size}");
        ensure_valid!(!ids.is_empty(), "the prompt has no tokens");
        Ok(())
    }

    /// The ids of every prompt of `path`.
    ///
    /// # Errors
    /// As [`Encoder::encode`], with the prompt's place.
    pub fn encode_all(&self, prompts: &[Prompt], path: &Path) -> Result<Vec<Vec<u32>>> {
        let (mut all, mut bad) = (vec![], BadRecords::default());
        for prompt in prompts {
            match self.encode(&prompt.messages, &prompt.variables) {
                Ok(ids) => all.push(ids),
                Err(error) => bad.note(path, prompt.place, error)?,
            }
        }
        bad.refuse(path, prompts.len(), prompts.len())?;
        Ok(all)
    }
}

/// Answers every prompt, `batch_size` at a time; `on_answer` gets (index, text) in the order of the prompts. `begun`: the ids of what
/// the answers begin with, at the prompts' ends; the text includes it.
///
/// # Errors
/// As [`Decoder::generate_all`], and [`stop::Interrupted`].
pub fn answer_all(
    (model, tokenizer): (&Decoder, &Tokenizer),
    (prompts, begun): (&[Vec<u32>], &[u32]),
    batch_size: usize,
    options: &GenerateOptions,
    progress: &ProgressBar,
    mut on_answer: impl FnMut(usize, String) -> Result<()>,
) -> Result<()> {
    progress.set_length(prompts.len() as u64);
    // Answers finish out of order; early ones wait here.
    let mut early: Vec<Option<String>> = vec![None; prompts.len()];
    let mut next = 0;
    model.generate_all(prompts, batch_size, options, |index, ids| {
        progress.inc(1);
        early[index] = Some(tokenizer.decode(&[begun, &ids].concat(), true)?);
        stop::check()?;
        while let Some(text) = early.get_mut(next).and_then(Option::take) {
            on_answer(next, text)?;
            next += 1;
        }
        Ok(())
    })
}

//! A model's answers to prompts: template, token ids, batched decoding, text.

use crate::data::{Prompt, Template};
use crate::ensure_valid;
use crate::model::{Decoder, GenerateOptions};
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result};
use indicatif::ProgressBar;
use serde_json::{Map, Value};
use std::path::Path;

/// A model with what it takes to talk to it.
pub struct Answerer<'a> {
    pub model: &'a Decoder,
    pub tokenizer: &'a Tokenizer,
    /// `None`: prompts are continued as they stand.
    pub template: Option<Template>,
    pub options: GenerateOptions,
}

impl Answerer<'_> {
    /// The prompt's ids: through the chat template, or as plain text with the tokenizer's own special tokens.
    ///
    /// # Errors
    /// A conversation that the template refuses; ids that the model has no embedding for.
    pub fn encode(&self, messages: &[Value], variables: &Map<String, Value>) -> Result<Vec<u32>> {
        let ids = match &self.template {
            Some(template) => self.tokenizer.encode(&template.render(messages, true, variables)?, false)?,
            None => {
                let text: Vec<&str> = messages.iter().filter_map(|message| message["content"].as_str()).collect();
                self.tokenizer.encode(&text.join("\n"), true)?
            }
        };
        let vocab_size = self.model.spec().vocab_size;
        let fits = ids.iter().all(|&id| (id as usize) < vocab_size);
        ensure_valid!(fits, "the tokenizer gives ids beyond the model's vocab_size of {vocab_size}");
        Ok(ids)
    }

    /// The ids of every prompt of `path`.
    ///
    /// # Errors
    /// As [`Answerer::encode`], and a prompt that leaves no room in the model's context, with its place.
    pub fn encode_all(&self, prompts: &[Prompt], path: &Path) -> Result<Vec<Vec<u32>>> {
        let context = self.model.spec().context();
        let encode = |prompt: &Prompt| {
            let ids = self.encode(&prompt.messages, &prompt.variables)?;
            let count = ids.len();
            ensure_valid!(!ids.is_empty(), "the prompt has no tokens");
            ensure_valid!(count < context, "the prompt has {count} tokens; the model's context ends at {context}");
            Ok(ids)
        };
        let place = |prompt: &Prompt| format!("{}{}", path.display(), prompt.place);
        prompts.iter().map(|prompt| encode(prompt).with_context(|| place(prompt))).collect()
    }

    /// Answers every prompt, `batch_size` at once; `on_answer` gets (index, text) in the order of the prompts.
    ///
    /// # Errors
    /// As [`Decoder::generate_all`].
    pub fn answer_all(
        &self,
        prompts: &[Vec<u32>],
        batch_size: usize,
        progress: &ProgressBar,
        mut on_answer: impl FnMut(usize, String) -> Result<()>,
    ) -> Result<()> {
        progress.set_length(prompts.len() as u64);
        // Answers end out of order; those that are early wait here.
        let mut early: Vec<Option<String>> = vec![None; prompts.len()];
        let mut next = 0;
        self.model.generate_all(prompts, batch_size, &self.options, |index, ids| {
            progress.inc(1);
            early[index] = Some(self.tokenizer.decode(&ids, true)?);
            while let Some(text) = early.get_mut(next).and_then(Option::take) {
                on_answer(next, text)?;
                next += 1;
            }
            Ok(())
        })
    }
}

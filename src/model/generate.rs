//! Continuing prompts token by token, several at once.

use super::{Decoder, End, GenerateOptions, Slots};
use crate::ensure_valid;
use anyhow::Result;

impl Decoder {
    /// The new tokens after `prompt`; each is handed to `on_token` as it is chosen.
    ///
    /// # Errors
    /// As [`Decoder::generate_all`].
    pub fn generate(
        &self,
        prompt: &[u32],
        options: &GenerateOptions,
        mut on_token: impl FnMut(u32) -> Result<()>,
    ) -> Result<Vec<u32>> {
        let mut answer = vec![];
        self.continue_all(
            &[prompt],
            1,
            options,
            |_, token| on_token(token),
            |_, tokens| {
                answer = tokens;
                Ok(())
            },
        )?;
        Ok(answer)
    }

    /// Continues every prompt, up to `batch_size` of them at once; a finished one makes room for the next. Each answer
    /// is handed to `on_answer` with its prompt's index as soon as it is complete. A prompt is sampled with the same
    /// seed whatever else is in the batch.
    ///
    /// # Errors
    /// An empty prompt, or one that leaves no room in the model's context; logits that are not finite.
    pub fn generate_all(
        &self,
        prompts: &[Vec<u32>],
        batch_size: usize,
        options: &GenerateOptions,
        on_answer: impl FnMut(usize, Vec<u32>) -> Result<()>,
    ) -> Result<()> {
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        self.continue_all(&prompts, batch_size, options, |_, _| Ok(()), on_answer)
    }

    fn continue_all(
        &self,
        prompts: &[&[u32]],
        batch_size: usize,
        options: &GenerateOptions,
        mut on_token: impl FnMut(usize, u32) -> Result<()>,
        mut on_answer: impl FnMut(usize, Vec<u32>) -> Result<()>,
    ) -> Result<()> {
        // All are checked first: a prompt that cannot be answered should not turn up after an hour.
        prompts.iter().enumerate().try_for_each(|(index, prompt)| self.check_prompt(index, prompt))?;
        let mut waiting = prompts.iter().enumerate();
        let count = batch_size.clamp(1, prompts.len().max(1));
        let longest = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
        let capacity = (longest + options.max_new_tokens).min(self.spec.context());
        let mut slots = Slots::new(&self.spec, count, capacity);
        // Which prompt each slot's sequence continues.
        let mut indices: Vec<Option<usize>> = vec![None; count];
        loop {
            while let Some((slot, (index, prompt))) = slots.free().and_then(|slot| Some((slot, waiting.next()?))) {
                slots.begin(slot, prompt, options, None)?;
                indices[slot] = Some(index);
            }
            let active: Vec<usize> = (0..count).filter(|slot| indices[*slot].is_some()).collect();
            if active.is_empty() {
                return Ok(());
            }
            for (slot, step) in slots.step(self, &active)? {
                let step = step.or_else(|error| self.refuse_damaged_weights().and(Err(error)))?;
                let Some(index) = indices[slot] else { continue };
                if let Some(token) = step.token.filter(|_| step.end != Some(End::Stop)) {
                    on_token(index, token)?;
                }
                if step.end.is_some() {
                    on_answer(index, slots.end(slot))?;
                    indices[slot] = None;
                }
            }
        }
    }

    fn check_prompt(&self, index: usize, prompt: &[u32]) -> Result<()> {
        ensure_valid!(!prompt.is_empty(), "prompt {} has no tokens", index + 1);
        let context = self.spec.context();
        ensure_valid!(
            prompt.len() < context,
            "prompt {} has {} tokens; the model's context ends at {context}",
            index + 1,
            prompt.len()
        );
        Ok(())
    }
}

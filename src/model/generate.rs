//! Continuing prompts token by token with the KV cache, several at once.

use super::sampling::Sampler;
use super::{Decoder, KvCache};
use crate::ensure_valid;
use anyhow::{Context, Result};

/// How tokens are chosen and when to stop.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// At least 1.
    pub max_new_tokens: usize,
    /// 0: greedy.
    pub temperature: f64,
    /// Share of the probability to sample from, in (0, 1].
    pub top_p: f64,
    pub seed: u64,
    /// Ids that end the answer; they are not part of it.
    pub stop_ids: Vec<u32>,
}

/// A sequence that is being continued.
struct Running<'a> {
    /// Which prompt it continues.
    index: usize,
    prompt: &'a [u32],
    /// `None`: the likeliest token.
    sampler: Option<Sampler>,
    /// Ids that the model has not seen yet.
    fresh: Vec<u32>,
    answer: Vec<u32>,
    /// Longest answer.
    room: usize,
}

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
        let running = prompts.iter().enumerate().map(|(index, prompt)| self.begin(index, prompt, options));
        let mut waiting = running.collect::<Result<Vec<Running<'_>>>>()?.into_iter();
        let mut slots: Vec<Option<Running>> = (0..batch_size.clamp(1, prompts.len().max(1))).map(|_| None).collect();
        let longest = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
        let capacity = (longest + options.max_new_tokens).min(self.spec.context());
        let mut cache = KvCache::new(&self.spec, slots.len(), capacity);
        loop {
            for (slot, running) in slots.iter_mut().enumerate().filter(|(_, running)| running.is_none()) {
                *running = waiting.next();
                cache.clear(slot);
            }
            let active: Vec<(usize, &[u32])> = slots
                .iter()
                .enumerate()
                .filter_map(|(slot, running)| Some((slot, running.as_ref()?.fresh.as_slice())))
                .collect();
            if active.is_empty() {
                return Ok(());
            }
            let logits = self.next_logits(&active, &mut cache)?;
            let logits = logits.to_vec2::<f32>()?;
            let best = self.likeliest(&logits)?;
            let busy = slots.iter_mut().enumerate().filter(|(_, running)| running.is_some());
            for (row, (slot, running)) in busy.enumerate() {
                let Some(sequence) = running else { continue };
                let token = match &mut sequence.sampler {
                    Some(sampler) => sampler.draw(&logits[row])?,
                    None => best[row],
                };
                let stop = options.stop_ids.contains(&token);
                if !stop {
                    sequence.answer.push(token);
                    sequence.fresh = vec![token];
                    let length = sequence.prompt.len() + sequence.answer.len();
                    if self.spec.ropes.iter().any(|rope| rope.turns_at(length)) {
                        // The cached keys were rotated by other frequencies.
                        cache.clear(slot);
                        sequence.fresh = [sequence.prompt, &sequence.answer].concat();
                    }
                    on_token(sequence.index, token)?;
                }
                if stop || sequence.answer.len() >= sequence.room {
                    on_answer(sequence.index, std::mem::take(&mut sequence.answer))?;
                    *running = None;
                }
            }
        }
    }

    fn begin<'a>(&self, index: usize, prompt: &'a [u32], options: &GenerateOptions) -> Result<Running<'a>> {
        ensure_valid!(!prompt.is_empty(), "prompt {} has no tokens", index + 1);
        let context = self.spec.context();
        ensure_valid!(
            prompt.len() < context,
            "prompt {} has {} tokens; the model's context ends at {context}",
            index + 1,
            prompt.len()
        );
        Ok(Running {
            index,
            prompt,
            sampler: (options.temperature != 0.0)
                .then(|| Sampler::new(options.seed, options.temperature, options.top_p)),
            fresh: prompt.to_vec(),
            answer: vec![],
            room: options.max_new_tokens.min(context - prompt.len()),
        })
    }

    /// The likeliest token of every row of the logits, [sequences, vocab_size].
    fn likeliest(&self, logits: &[Vec<f32>]) -> Result<Vec<u32>> {
        let best: Option<Vec<u32>> = logits.iter().map(|row| largest(row)).collect();
        if best.is_none() {
            self.refuse_damaged_weights()?;
        }
        best.context("the model's logits are not finite")
    }
}

/// The first of the largest; `None` if any is not finite.
fn largest(logits: &[f32]) -> Option<u32> {
    let top = logits.iter().fold(f32::NEG_INFINITY, |top, x| if *x > top { *x } else { top });
    let finite = logits.iter().fold(true, |finite, x| finite & x.is_finite());
    if !finite {
        return None;
    }
    logits.iter().position(|x| *x == top).and_then(|i| u32::try_from(i).ok())
}

//! Sequences that are continued side by side, token by token with the KV cache. One may begin or end between any two steps, and
//! a step may be of some of them only: those that share a decoder.

use super::sampling::Sampler;
use super::{Decoder, KvCache, ModelSpec, Score};
use crate::ops::cross_entropy::chunk_rows;
use crate::ops::threads::awake;
use anyhow::{Context, Result};
use candle_core::Tensor;
use rayon::prelude::*;

/// How tokens are chosen and when to stop.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// At least 1, unless only the prompt is to be scored.
    pub max_new_tokens: usize,
    /// 0: greedy.
    pub temperature: f64,
    /// Share of the probability to sample from, in (0, 1].
    pub top_p: f64,
    pub seed: u64,
    /// Ids that end the answer; they are not part of it.
    pub stop_ids: Vec<u32>,
}

/// What of a sequence is scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scored {
    /// Whether the prompt's tokens are, too.
    pub prompt: bool,
    /// How many of the likeliest tokens are told of each place.
    pub top: usize,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By a token that ends answers, which is no part of the answer.
    Stop,
    /// There is no room for another token.
    Length,
}

/// What a step brought to a sequence.
#[derive(Debug)]
pub struct Chosen {
    /// The token that was chosen; `None` if the sequence was begun without room for one.
    pub token: Option<u32>,
    /// Of that token, if it was asked for.
    pub score: Option<Score>,
    /// Of the prompt's tokens from the second on, in the step that reads the prompt, if they were asked for.
    pub prompt: Vec<Score>,
    /// The sequence stays in its slot until [`Slots::end`].
    pub end: Option<End>,
}

/// A sequence that is being continued.
struct Running {
    prompt: Vec<u32>,
    /// `None`: the likeliest token.
    sampler: Option<Sampler>,
    stop_ids: Vec<u32>,
    scored: Option<Scored>,
    /// Ids that the model has not seen yet.
    fresh: Vec<u32>,
    answer: Vec<u32>,
    /// Longest answer.
    room: usize,
}

/// The sequences, each in a slot of one cache.
pub struct Slots {
    cache: KvCache,
    running: Vec<Option<Running>>,
    capacity: usize,
}

impl Slots {
    /// `count` slots for up to `capacity` tokens each, prompt and answer together.
    pub fn new(spec: &ModelSpec, count: usize, capacity: usize) -> Self {
        let running = (0..count).map(|_| None).collect();
        Self { cache: KvCache::new(spec, count, capacity), running, capacity }
    }

    /// The first slot without a sequence.
    pub fn free(&self) -> Option<usize> {
        self.running.iter().position(Option::is_none)
    }

    /// Begins a sequence in a free slot. It is sampled with the same seed whatever else is there.
    ///
    /// # Errors
    /// An empty prompt, or one that does not fit; no such slot.
    pub fn begin(
        &mut self,
        slot: usize,
        prompt: &[u32],
        options: &GenerateOptions,
        scored: Option<Scored>,
    ) -> Result<()> {
        anyhow::ensure!(!prompt.is_empty() && prompt.len() <= self.capacity, "a prompt of {} tokens", prompt.len());
        let sampled = options.temperature != 0.0;
        *self.running.get_mut(slot).context("no such slot")? = Some(Running {
            prompt: prompt.to_vec(),
            sampler: sampled.then(|| Sampler::new(options.seed, options.temperature, options.top_p)),
            stop_ids: options.stop_ids.clone(),
            scored,
            fresh: prompt.to_vec(),
            answer: vec![],
            room: options.max_new_tokens.min(self.capacity - prompt.len()),
        });
        self.cache.clear(slot);
        Ok(())
    }

    /// Ends the sequence in a slot; returns what was answered, without the token that ended it.
    pub fn end(&mut self, slot: usize) -> Vec<u32> {
        self.running.get_mut(slot).and_then(Option::take).map_or(vec![], |running| running.answer)
    }

    /// Continues the sequences in `slots`, in ascending order, by a token each. A sequence whose logits are not finite fails alone.
    ///
    /// # Errors
    /// The decoder fails.
    pub fn step(&mut self, model: &Decoder, slots: &[usize]) -> Result<Vec<(usize, Result<Chosen>)>> {
        let running = slots.iter().filter_map(|&slot| Some((slot, self.running.get(slot)?.as_ref()?)));
        let active: Vec<(usize, &[u32])> = running.map(|(slot, running)| (slot, running.fresh.as_slice())).collect();
        let x = awake(|| model.extend(&active, &mut self.cache))?;
        let starts = active.iter().scan(0, |row, (_, ids)| Some(std::mem::replace(row, *row + ids.len())));
        let starts: Vec<usize> = starts.collect();
        let last: Vec<u32> =
            starts.iter().zip(&active).map(|(start, (_, ids))| (start + ids.len() - 1) as u32).collect();
        let logits = host(&awake(|| model.logits_at(&x, &last))?)?;
        let active: Vec<usize> = active.into_iter().map(|(slot, _)| slot).collect();
        let mut steps = Vec::with_capacity(active.len());
        for ((slot, start), logits) in active.into_iter().zip(starts).zip(logits) {
            let Some(running) = &mut self.running[slot] else { continue };
            let step = running.prompt_scores(model, &x, start).and_then(|prompt| running.choose(&logits, prompt));
            if running.turn(model) {
                self.cache.clear(slot);
            }
            steps.push((slot, step));
        }
        Ok(steps)
    }
}

impl Running {
    /// Scores of the prompt's tokens from the second on, if this step read it and they were asked for; x: hidden states, those of
    /// the prompt from row `start` on.
    fn prompt_scores(&self, model: &Decoder, x: &Tensor, start: usize) -> Result<Vec<Score>> {
        let Some(Scored { prompt: true, top }) = self.scored else { return Ok(vec![]) };
        if !self.answer.is_empty() {
            return Ok(vec![]);
        }
        let (rows, targets): (Vec<u32>, Vec<u32>) = (start as u32..).zip(self.prompt.iter().skip(1)).unzip();
        let chunk = chunk_rows(model.spec().vocab_size, rows.len(), model.device().is_cpu());
        let mut scores = Vec::with_capacity(rows.len());
        for (rows, targets) in rows.chunks(chunk).zip(targets.chunks(chunk)) {
            let logits = host(&model.logits_at(x, rows)?)?;
            for row in &logits {
                finite(row)?;
            }
            let scored = logits.par_iter().zip(targets).map(|(row, &target)| Score::new(row, target, top));
            scores.extend(scored.collect::<Vec<Score>>());
        }
        Ok(scores)
    }

    /// Chooses the next token by its logits, [vocab_size].
    fn choose(&mut self, logits: &[f32], prompt: Vec<Score>) -> Result<Chosen> {
        let best = finite(logits)?;
        if self.room == 0 {
            return Ok(Chosen { token: None, score: None, prompt, end: Some(End::Length) });
        }
        let token = match &mut self.sampler {
            Some(sampler) => sampler.draw(logits)?,
            None => best,
        };
        let score = self.scored.map(|scored| Score::new(logits, token, scored.top));
        let stops = self.stop_ids.contains(&token);
        if !stops {
            self.answer.push(token);
        }
        self.fresh = vec![token];
        let end = match (stops, self.answer.len() >= self.room) {
            (true, _) => Some(End::Stop),
            (false, true) => Some(End::Length),
            (false, false) => None,
        };
        Ok(Chosen { token: Some(token), score, prompt, end })
    }

    /// Whether the sequence has got so long that its keys were rotated by other frequencies: all of it is fresh then.
    fn turn(&mut self, model: &Decoder) -> bool {
        let length = self.prompt.len() + self.answer.len();
        let turns = model.spec().ropes.iter().any(|rope| rope.turns_at(length));
        if turns {
            self.fresh = [&self.prompt[..], &self.answer].concat();
        }
        turns
    }
}

/// The values of logits [rows, vocab_size].
fn host(logits: &Tensor) -> Result<Vec<Vec<f32>>> {
    Ok(logits.to_vec2::<f32>()?)
}

/// The likeliest token; of equals the first.
///
/// # Errors
/// A logit that is not finite.
fn finite(logits: &[f32]) -> Result<u32> {
    let top = logits.iter().fold(f32::NEG_INFINITY, |top, x| if *x > top { *x } else { top });
    let finite = logits.iter().fold(true, |finite, x| finite & x.is_finite());
    anyhow::ensure!(finite, "the model's logits are not finite");
    let place = logits.iter().position(|x| *x == top).context("there are no logits")?;
    Ok(u32::try_from(place)?)
}

//! Continuing a prompt token by token with the KV cache; candle's `LogitsProcessor` does the choosing.

use super::{Decoder, KvCache};
use crate::ensure_valid;
use anyhow::{Result, bail};
use candle_transformers::generation::{LogitsProcessor, Sampling};

/// How tokens are chosen and when to stop.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    pub max_new_tokens: usize,
    /// 0: greedy.
    pub temperature: f64,
    /// Share of the probability that may be sampled from, in (0, 1].
    pub top_p: f64,
    pub seed: u64,
    /// Ids that end the answer; they are not part of it.
    pub stop_ids: Vec<u32>,
}

impl GenerateOptions {
    fn sampling(&self) -> Sampling {
        let temperature = self.temperature;
        match (temperature, self.top_p) {
            (0.0, _) => Sampling::ArgMax,
            (_, p) if p < 1.0 => Sampling::TopP { p, temperature },
            _ => Sampling::All { temperature },
        }
    }
}

impl Decoder {
    /// The new tokens after `prompt`; each is handed to `on_token` as it comes.
    ///
    /// # Errors
    /// An empty prompt, or one that leaves no room in the model's context; logits that are not finite.
    pub fn generate(
        &self,
        prompt: &[u32],
        options: &GenerateOptions,
        mut on_token: impl FnMut(u32) -> Result<()>,
    ) -> Result<Vec<u32>> {
        ensure_valid!(!prompt.is_empty(), "the prompt has no tokens");
        let context = self.spec.context();
        ensure_valid!(
            prompt.len() < context,
            "the prompt has {} tokens; the model's context ends at {context}",
            prompt.len()
        );
        let count = options.max_new_tokens.min(context - prompt.len());
        let mut cache = KvCache::new(&self.spec, prompt.len() + count);
        let mut sampler = LogitsProcessor::from_sampling(options.seed, options.sampling());
        let (mut answer, mut fresh) = (vec![], prompt.to_vec());
        for _ in 0..count {
            let logits = self.next_logits(&fresh, &mut cache)?;
            let Some(best) = largest(&logits.to_vec1::<f32>()?) else {
                self.refuse_damaged_weights()?;
                bail!("the model's logits are not finite");
            };
            let token = if options.temperature == 0.0 { best } else { sampler.sample(&logits)? };
            if options.stop_ids.contains(&token) {
                break;
            }
            answer.push(token);
            on_token(token)?;
            fresh = vec![token];
        }
        Ok(answer)
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

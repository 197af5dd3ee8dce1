//! A judge that answers in words: a language model that is asked about a question and its answer, through its own chat template or a
//! prompt as text. Its verdict is the probability of a label as the first token of what it says, or a pattern in its text.

use super::case::{Case, Verdict, fill, load_decoder, prompt_of};
use super::options::Evaluation;
use crate::checkpoint::Checkpoint;
use crate::data::Template;
use crate::error::regex_problem;
use crate::hub;
use crate::model::{Decoder, GenerateOptions, KvCache, ModelSpec};
use crate::tokenizer::Tokenizer;
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use candle_core::{D, DType, Device};
use regex::Regex;
use serde_json::{Map, json};
use std::cell::OnceCell;

/// A language model as a judge, loaded when it is first asked.
pub struct Generative {
    checkpoint: Checkpoint,
    spec: ModelSpec,
    place: (Device, DType),
    model: OnceCell<Decoder>,
    tokenizer: Tokenizer,
    form: Form,
    rule: Rule,
}

/// How it is asked.
enum Form {
    /// Its chat template, over the user's question and the assistant's answer.
    Chat(Box<Template>),
    /// A text, which gets the tokenizer's own special tokens.
    Text(String),
}

/// When it flags an answer.
enum Rule {
    /// The first label, as the first token of what it says, has a probability above the threshold: among all tokens if there is one
    /// label, among the two labels' if there are two.
    Labels { ids: Vec<u32>, threshold: f64 },
    /// The pattern matches in what it says, which has so many tokens at most.
    Pattern { pattern: Regex, max_new_tokens: usize },
}

impl Generative {
    /// Opens the evaluation's judge, to compute on `device` in `dtype`.
    ///
    /// # Errors
    /// A folder or id that is no language model's; a prompt without {question} or {answer}; no prompt and no chat template; labels that
    /// begin with the same token; a pattern that is no regular expression.
    pub fn open(evaluation: &Evaluation, device: &Device, dtype: DType) -> Result<Self> {
        let dir = hub::resolve(evaluation.judge.as_deref().unwrap_or_default(), false)?.place;
        let (spec, tokenizer) = (ModelSpec::load(&dir)?, Tokenizer::load(&dir)?);
        let form = match prompt_of(evaluation)? {
            Some(prompt) => Form::Text(prompt.to_string()),
            None => {
                let template = Template::load("tokenizer", &evaluation.judge_template_variables, &tokenizer);
                Form::Chat(Box::new(
                    template.context("the judge is asked through its chat template; or give `judge_prompt`")?,
                ))
            }
        };
        let rule = match &evaluation.judge_pattern {
            Some(pattern) => Rule::Pattern {
                pattern: Regex::new(pattern).map_err(|e| {
                    invalid!("judge_pattern {pattern:?} is not a regular expression: {}", regex_problem(&e))
                })?,
                max_new_tokens: evaluation.judge_max_new_tokens.unwrap_or(64),
            },
            None => Rule::Labels {
                ids: label_ids(&evaluation.judge_labels, &tokenizer)?,
                threshold: evaluation.judge_threshold.unwrap_or(0.5),
            },
        };
        let checkpoint = Checkpoint::open(&dir)?;
        let place = (device.clone(), dtype);
        Ok(Self { checkpoint, spec, place, model: OnceCell::new(), tokenizer, form, rule })
    }

    /// The weights, loaded by the first call.
    fn model(&self) -> Result<&Decoder> {
        if let Some(model) = self.model.get() {
            return Ok(model);
        }
        let model = load_decoder(&self.spec, &self.checkpoint, &self.place)?;
        Ok(self.model.get_or_init(|| model))
    }

    /// Frees the weights until they are needed again.
    pub fn unload(&mut self) {
        self.model.take();
    }

    /// Its verdict on each case.
    ///
    /// # Errors
    /// A case whose text does not fit the judge's context, or that its template refuses.
    pub fn verdicts(&self, cases: &[Case]) -> Result<Vec<Verdict>> {
        let prompts = cases.iter().map(|case| self.encode(case)).collect::<Result<Vec<_>>>()?;
        match &self.rule {
            Rule::Labels { ids, threshold } => {
                let verdict = |p: f64| Verdict { flagged: p > *threshold, reason: ("judge_probability", json!(p)) };
                Ok(self.probabilities(&prompts, ids)?.into_iter().map(verdict).collect())
            }
            Rule::Pattern { pattern, max_new_tokens } => {
                let verdict =
                    |text: String| Verdict { flagged: pattern.is_match(&text), reason: ("judge_answer", json!(text)) };
                Ok(self.texts(&prompts, *max_new_tokens)?.into_iter().map(verdict).collect())
            }
        }
    }

    /// The case as ids, up to where the judge answers.
    pub(super) fn encode(&self, case: &Case) -> Result<Vec<u32>> {
        let (text, special) = match &self.form {
            Form::Text(prompt) => (fill(prompt, case), true),
            Form::Chat(template) => {
                let mut messages = vec![
                    json!({"role": "user", "content": case.question}),
                    json!({"role": "assistant", "content": case.answer}),
                ];
                template.prepare(&mut messages)?;
                (template.render(&messages, true, &Map::new()).context("the judge's chat template")?, false)
            }
        };
        let ids = self.tokenizer.encode(&text, special)?;
        let (count, context) = (ids.len(), self.spec.context());
        ensure_valid!(count > 0, "the judge's tokenizer makes no tokens of {text:.80?}");
        ensure_valid!(
            count < context,
            "what the judge is asked has {count} tokens, but its context ends at {context}; lower max_new_tokens, which bounds the \
             answers"
        );
        Ok(ids)
    }

    /// The probability of the first label for each prompt.
    pub(super) fn probabilities(&self, prompts: &[Vec<u32>], labels: &[u32]) -> Result<Vec<f64>> {
        let model = self.model()?;
        let capacity = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let mut cache = KvCache::new(&self.spec, prompts.len(), capacity);
        let fresh: Vec<(usize, &[u32])> = prompts.iter().map(Vec::as_slice).enumerate().collect();
        let logits = model.next_logits(&fresh, &mut cache)?.to_dtype(DType::F32)?;
        let log_sums = logits.log_sum_exp(D::Minus1)?.to_vec1::<f32>()?;
        let rows = logits.to_vec2::<f32>()?;
        let probability = |(row, log_sum): (&Vec<f32>, &f32)| {
            let logit = |id: &u32| row.get(*id as usize).map(|logit| f64::from(*logit));
            let logits: Option<Vec<f64>> = labels.iter().map(logit).collect();
            match logits.as_deref() {
                Some([label]) => Ok((label - f64::from(*log_sum)).exp()),
                Some([label, other]) => Ok(1.0 / (1.0 + (other - label).exp())),
                _ => Err(invalid!("judge_labels have ids beyond the judge's vocabulary")),
            }
        };
        rows.iter().zip(&log_sums).map(probability).collect()
    }

    /// What the judge says to each prompt, greedily.
    fn texts(&self, prompts: &[Vec<u32>], max_new_tokens: usize) -> Result<Vec<String>> {
        let stop_ids = self.tokenizer.eos_ids().to_vec();
        let options = GenerateOptions { max_new_tokens, temperature: 0.0, top_p: 1.0, seed: 0, stop_ids };
        let mut texts = vec![String::new(); prompts.len()];
        self.model()?.generate_all(prompts, prompts.len(), &options, |index, ids| {
            texts[index] = self.tokenizer.decode(&ids, true)?;
            Ok(())
        })?;
        Ok(texts)
    }
}

/// The first token of each label.
fn label_ids(labels: &[String], tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let first = |label: &String| {
        let ids = tokenizer.encode(label, false)?;
        ids.first().copied().ok_or_else(|| invalid!("judge_labels: the judge's tokenizer makes no token of {label:?}"))
    };
    let ids: Vec<u32> = labels.iter().map(first).collect::<Result<_>>()?;
    let distinct = ids.first() != ids.get(1);
    ensure_valid!(
        distinct,
        "judge_labels {labels:?} begin with the same token for the judge, so it cannot tell them apart"
    );
    Ok(ids)
}

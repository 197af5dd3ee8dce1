//! A moderation model that classifies: question and answer in, a probability for each of its labels out, in the style of
//! beaver-dam-7b (PKU-Alignment, BeaverTails). Any sequence-classification checkpoint whose decoder asft knows will do:
//! the decoder's tensors, and `score.weight` [labels, hidden_size].

use super::case::{Case, Verdict, fill, load_decoder, prompt_of};
use super::options::{Evaluation, JUDGE_PROMPT};
use crate::checkpoint::Checkpoint;
use crate::hub;
use crate::model::{Decoder, ModelSpec};
use crate::tokenizer::Tokenizer;
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::cell::OnceCell;
use std::path::Path;

/// A moderation model, loaded when it is first asked.
pub struct Classifier {
    checkpoint: Checkpoint,
    spec: ModelSpec,
    place: (Device, DType),
    network: OnceCell<Network>,
    tokenizer: Tokenizer,
    labels: Vec<String>,
    pad_id: Option<u32>,
    prompt: String,
    max_length: usize,
    threshold: f64,
}

struct Network {
    model: Decoder,
    /// [labels, hidden_size], f32
    score: Tensor,
}

/// The classifier on top of the decoder.
const SCORE: &str = "score.weight";

impl Classifier {
    /// Opens the evaluation's judge, to compute on `device` in `dtype`.
    ///
    /// # Errors
    /// A folder or id that is not such a checkpoint; a prompt without {question} or {answer}.
    pub fn open(evaluation: &Evaluation, device: &Device, dtype: DType) -> Result<Self> {
        let id = evaluation.judge.as_deref().unwrap_or_default();
        let prompt = prompt_of(evaluation)?.unwrap_or(JUDGE_PROMPT).to_string();
        let dir = hub::resolve(id, false)?.place;
        let mut spec = ModelSpec::load(&dir)?;
        // There is no language-model head to load.
        spec.tie_word_embeddings = true;
        let checkpoint = Checkpoint::open(&dir)?;
        let hidden_size = spec.hidden_size;
        let shape = checkpoint.info(SCORE).map(|info| info.shape.clone()).unwrap_or_default();
        ensure_valid!(
            matches!(shape[..], [labels, width] if labels > 0 && width == hidden_size),
            "{} is not a sequence-classification model: expected a tensor {SCORE} of shape [labels, {hidden_size}], found {}; \
             a language model judges by `judge_labels`, `judge_pattern` or a `judge_preset`",
            dir.display(),
            if shape.is_empty() { "none".to_string() } else { format!("{shape:?}") }
        );
        let (labels, pad_id) = described(&dir, shape[0])?;
        Ok(Self {
            checkpoint,
            spec,
            place: (device.clone(), dtype),
            network: OnceCell::new(),
            tokenizer: Tokenizer::load(&dir)?,
            labels,
            pad_id,
            prompt,
            max_length: evaluation.judge_max_length.unwrap_or(256),
            threshold: evaluation.judge_threshold.unwrap_or(0.5),
        })
    }

    /// The weights, loaded by the first call.
    fn network(&self) -> Result<&Network> {
        if let Some(network) = self.network.get() {
            return Ok(network);
        }
        let model = load_decoder(&self.spec, &self.checkpoint, &self.place)?;
        let score = self.checkpoint.tensor(SCORE, DType::F32, &self.place.0)?;
        Ok(self.network.get_or_init(|| Network { model, score }))
    }

    /// Frees the weights until they are needed again.
    pub fn unload(&mut self) {
        self.network.take();
    }

    /// Flags each text that has a label with a probability above the threshold.
    ///
    /// # Errors
    /// A text that cannot be tokenized.
    pub fn verdicts(&self, cases: &[Case]) -> Result<Vec<Verdict>> {
        let ids = cases.iter().map(|case| self.encode(case)).collect::<Result<Vec<_>>>()?;
        let verdict = |row: Vec<f32>| {
            let above = row.into_iter().zip(&self.labels).filter(|(p, _)| f64::from(*p) > self.threshold);
            let flags: Vec<&String> = above.map(|(_, label)| label).collect();
            Verdict { flagged: !flags.is_empty(), reason: ("flags", json!(flags)) }
        };
        Ok(self.probabilities(&ids)?.to_vec2()?.into_iter().map(verdict).collect())
    }

    /// The sigmoid of every label's score, [texts, labels].
    pub(super) fn probabilities(&self, ids: &[Vec<u32>]) -> Result<Tensor> {
        let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
        let mut start = 0;
        // transformers reads the score at the last token whose id is not the padding id, even where that id is part of
        // the text.
        let row = |ids: &Vec<u32>| {
            let last = ids.iter().rposition(|id| Some(*id) != self.pad_id).unwrap_or(ids.len() - 1);
            let row = (start + last) as u32;
            start += ids.len();
            row
        };
        let rows = ids.iter().map(row).collect();
        let Network { model, score } = self.network()?;
        let features = model.features(&ids.concat(), &lengths, rows)?.to_dtype(DType::F32)?;
        Ok(candle_nn::ops::sigmoid(&features.matmul(&score.t()?)?)?)
    }

    pub(super) fn encode(&self, case: &Case) -> Result<Vec<u32>> {
        let mut text = fill(&self.prompt, case);
        if let Some(eos) = self.tokenizer.eos_token().filter(|eos| !text.ends_with(eos)) {
            text.push_str(eos);
        }
        let mut ids = self.tokenizer.encode(&text, true)?;
        ids.truncate(self.max_length.min(self.spec.context()));
        ensure_valid!(!ids.is_empty(), "the judge's tokenizer makes no tokens of {text:.80?}");
        Ok(ids)
    }
}

/// The labels' names and the padding's id, from config.json.
fn described(dir: &Path, count: usize) -> Result<(Vec<String>, Option<u32>)> {
    let path = dir.join("config.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let config: Value = serde_json::from_str(&text).map_err(|e| invalid!("{}: {e}", path.display()))?;
    let name = |i: usize| {
        let name = config["id2label"][i.to_string()].as_str();
        name.map_or_else(|| format!("LABEL_{i}"), str::to_string)
    };
    let pad_id = config["pad_token_id"].as_u64().and_then(|id| u32::try_from(id).ok());
    Ok(((0..count).map(name).collect(), pad_id))
}

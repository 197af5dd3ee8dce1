//! Mean cross-entropy over the label tokens of a dataset.

use crate::data::Dataset;
use crate::model::{Decoder, Sequences};
use crate::ranks::Ranks;
use anyhow::Result;
use indicatif::ProgressBar;

/// A mean and the number of tokens it is over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MeanLoss {
    /// In nats per label token.
    pub loss: f64,
    pub label_tokens: usize,
}

impl MeanLoss {
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// The model's mean loss. The sum over tokens does not depend on the batching. Several ranks share the samples.
pub fn mean_loss(model: &Decoder, set: &Dataset, batch_size: usize, progress: &ProgressBar) -> Result<MeanLoss> {
    let ranks = Ranks::here();
    let own: Vec<usize> = ranks.share(&set.lengths().collect::<Vec<_>>()).collect();
    progress.set_length(own.len() as u64);
    let (mut sum, mut label_tokens) = (0.0, 0);
    for samples in own.chunks(batch_size) {
        let batch = set.batch(samples)?;
        sum += model.loss(Sequences::from(&batch))?;
        label_tokens += batch.label_tokens();
        progress.inc(samples.len() as u64);
    }
    // Counts are exact in f64.
    let [sum, label_tokens] = ranks.sum([sum, label_tokens as f64]);
    Ok(MeanLoss { loss: sum / label_tokens.max(1.0), label_tokens: label_tokens as usize })
}

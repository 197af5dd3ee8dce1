//! The check before step 1 that everything meant to train receives a gradient.
//!
//! A fresh adapter's B is zero, so A's gradient is zero too; the probe therefore runs the model with a small non-zero
//! B, and then restores B.

use crate::data::{Dataset, Example};
use crate::model::{Decoder, Gradients, Sequences};
use crate::names::LoraMatrix;
use crate::ops::owned;
use anyhow::{Result, bail};
use candle_core::Tensor;

/// Tokens of the sample that the probe runs on.
const PROBE_TOKENS: usize = 64;
const PROBE_VALUE: f64 = 1e-2;
/// Samples that are looked at: those whose lengths are nearest to that.
const LOOKED_AT: usize = 64;

/// Runs one short sample forward and backward.
///
/// # Errors
/// A parameter whose gradient is missing, zero or not finite; all are listed.
pub fn check_gradients(model: &Decoder, samples: &Dataset) -> Result<()> {
    let mut nearest: Vec<(usize, usize)> =
        samples.lengths().enumerate().map(|(i, length)| (length.abs_diff(PROBE_TOKENS), i)).collect();
    if nearest.len() > LOOKED_AT {
        nearest.select_nth_unstable(LOOKED_AT);
        nearest.truncate(LOOKED_AT);
    }
    let examples: Vec<Example> = nearest.iter().map(|&(_, i)| samples.example(i)).collect::<Result<_>>()?;
    let Some(sample) = short_sample(&examples) else { return Ok(()) };
    let mut kept: Vec<(&str, Tensor)> = vec![];
    for (name, var) in model.parameters().iter().filter(|(name, _)| LoraMatrix::B.is(name)) {
        kept.push((name, owned(var.as_tensor())?));
        let probe = Tensor::ones(var.shape(), var.dtype(), var.device())? * PROBE_VALUE;
        var.set(&probe?)?;
    }
    let result = gradients_of(model, &sample);
    for (name, value) in kept {
        model.parameters()[name].set(&value)?;
    }
    let gradients = result?;
    let mut silent = vec![];
    for name in model.parameters().keys() {
        let size = gradients.get(name)?.abs()?.sum_all()?.to_scalar::<f32>()?;
        if !(size > 0.0 && size.is_finite()) {
            silent.push(format!("{name} ({size})"));
        }
    }
    if silent.is_empty() {
        return Ok(());
    }
    model.refuse_damaged_weights()?;
    bail!("no usable gradient reaches {}", crate::error::listing(&silent, 8))
}

/// The beginning of a sample, as near to [`PROBE_TOKENS`] tokens as the data allow. The shortest will not do: if a
/// token sees only itself, its attention weight is 1 whatever the query, and q and k receive no gradient.
fn short_sample(examples: &[Example]) -> Option<Example> {
    let cut = |example: &Example| {
        let first = example.labels.iter().skip(1).position(|&label| label >= 0)? + 1;
        let end = (first + PROBE_TOKENS / 2).max(PROBE_TOKENS).min(example.labels.len());
        Some(Example { input_ids: example.input_ids[..end].to_vec(), labels: example.labels[..end].to_vec() })
    };
    examples.iter().filter_map(cut).min_by_key(|example| example.input_ids.len().abs_diff(PROBE_TOKENS))
}

fn gradients_of(model: &Decoder, sample: &Example) -> Result<Gradients> {
    let (input_ids, labels, lengths) = (&sample.input_ids, &sample.labels, &[sample.input_ids.len()]);
    let sequences = Sequences { input_ids, labels, lengths };
    let mut gradients = Gradients::default();
    model.loss_and_gradients(sequences, 1.0, true, None, &mut gradients)?;
    Ok(gradients)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sample of `length` tokens whose labels begin at `first`.
    fn sample(length: usize, first: usize) -> Example {
        let labels = (0..length).map(|i| if i < first { -100 } else { 1 }).collect();
        Example { input_ids: vec![1; length], labels }
    }

    fn probed(samples: &[Example]) -> Option<usize> {
        short_sample(samples).map(|sample| sample.input_ids.len())
    }

    #[test]
    fn a_sample_of_two_tokens_is_not_what_decides() {
        assert_eq!(probed(&[sample(2, 1), sample(40, 5), sample(9, 2)]), Some(40));
        assert_eq!(probed(&[sample(2, 1), sample(500, 10), sample(900, 800)]), Some(PROBE_TOKENS));
        assert_eq!(probed(&[sample(900, 800)]), Some(800 + PROBE_TOKENS / 2));
        assert_eq!(probed(&[sample(3, 3)]), None);
    }
}

//! Data parallelism: the samples of a step shared out over the ranks, and their gradients added up.
//!
//! What a step trains on is the same for any number of ranks, so `train.batch_size` and `train.gradient_accumulation` mean
//! what they mean in one process. The samples of all micro-batches, in their order, are cut into one stretch for each rank
//! with about as many tokens; a rank computes its part of each micro-batch that its stretch touches. Every part's loss is
//! divided by the label tokens of the whole step, so that the sum of the gradients is the gradient of the step. What
//! follows (penalty, clipping, AdamW) each rank does for itself, from the same numbers.

use crate::config::Settings;
use crate::data::Batch;
use crate::ensure_valid;
use crate::error::listing;
use crate::model::{Gradients, Parameters};
use crate::ranks::Ranks;
use crate::report::log;
use anyhow::Result;
use candle_core::{Device, Tensor, Var};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// Gradients are added up in buckets of at least so many elements, but for the last.
const BUCKET: usize = 1 << 24;

/// A rank's part of a micro-batch.
pub struct Part<'a> {
    /// Which one of the step's.
    pub micro_batch: usize,
    /// Tokens of the micro-batch before those of the part.
    pub first_row: usize,
    pub batch: Cow<'a, Batch>,
}

/// What this rank computes of a step's micro-batches. Alone, that is all of them as they are.
pub fn parts(ranks: Ranks, batches: &[Batch]) -> Vec<Part<'_>> {
    let whole = |(micro_batch, batch)| Part { micro_batch, first_row: 0, batch: Cow::Borrowed(batch) };
    if !ranks.are_many() {
        return batches.iter().enumerate().map(whole).collect();
    }
    let lengths: Vec<usize> = batches.iter().flat_map(|batch| batch.lengths.iter().copied()).collect();
    let own = ranks.share(&lengths);
    let (mut parts, mut before) = (vec![], 0);
    for (micro_batch, batch) in batches.iter().enumerate() {
        let count = batch.lengths.len();
        let (start, end) = (own.start.clamp(before, before + count), own.end.clamp(before, before + count));
        if start < end {
            let (first_row, batch) = batch.part(start - before..end - before);
            parts.push(Part { micro_batch, first_row, batch: Cow::Owned(batch) });
        }
        before += count;
    }
    parts
}

/// Adds up the gradients of `parameters` over the ranks; every parameter has one afterwards. They pass through the memory
/// of the host, 4 bytes an element.
pub fn sum_gradients(ranks: Ranks, parameters: &Parameters, gradients: &mut Gradients) -> Result<()> {
    if !ranks.are_many() {
        return Ok(());
    }
    let (mut bucket, mut members): (Vec<f32>, Vec<(&str, &Var)>) = (vec![], vec![]);
    let last = parameters.keys().next_back();
    for (name, parameter) in parameters {
        match gradients.get(name) {
            Ok(gradient) => bucket.extend(gradient.flatten_all()?.to_vec1::<f32>()?),
            // None of this rank's samples.
            Err(_) => bucket.resize(bucket.len() + parameter.elem_count(), 0.0),
        }
        members.push((name, parameter));
        if bucket.len() < BUCKET && Some(name) != last {
            continue;
        }
        ranks.sum_f32(&mut bucket);
        let mut rest = &bucket[..];
        for (name, parameter) in members.drain(..) {
            let (values, others) = rest.split_at(parameter.elem_count());
            gradients.set(name, Tensor::from_slice(values, parameter.shape(), parameter.device())?);
            rest = others;
        }
        bucket.clear();
    }
    Ok(())
}

/// Says so if there are not enough samples in a step.
pub fn warn_of_idle_ranks(settings: &Settings) {
    let (ranks, train) = (Ranks::here().size(), &settings.train);
    let samples = train.batch_size.saturating_mul(train.gradient_accumulation);
    // A packed row is cut between its samples.
    if samples < ranks && !settings.data.packing {
        let text = format!(
            "a step has at most {samples} samples (train.batch_size x train.gradient_accumulation), for {ranks} ranks: some \
             have nothing to do"
        );
        log::warn(&text, json!({"samples": samples, "ranks": ranks}));
    }
}

/// Makes sure that all ranks start the same run. `inputs`: content hashes by key.
pub fn check_same_run(settings: &Settings, inputs: &BTreeMap<String, String>, device: &Device) -> Result<()> {
    let ranks = Ranks::here();
    if !ranks.are_many() {
        return Ok(());
    }
    let mut own = settings.by_key()?;
    own.extend(inputs.iter().map(|(key, hash)| (format!("the content of {key}"), hash.as_str().into())));
    own.insert("the kind of device".to_string(), if device.is_cpu() { "CPU" } else { "GPU" }.into());
    let first: BTreeMap<String, Value> = serde_json::from_slice(&ranks.of_first(serde_json::to_vec(&own)?))?;
    let differing: BTreeSet<&str> =
        own.keys().chain(first.keys()).filter(|key| own.get(*key) != first.get(*key)).map(String::as_str).collect();
    let differing: Vec<&str> = differing.into_iter().collect();
    let same = || {
        ensure_valid!(
            differing.is_empty(),
            "not the same as on rank 0: {}; every rank needs the same command and the same files at the same paths",
            listing(&differing, 12)
        );
        Ok(())
    };
    ranks.agree(same())
}

/// Makes sure that the ranks' parameters are the same, bit by bit: they never send them to each other.
pub fn check_same_parameters(parameters: &Parameters) -> Result<()> {
    let ranks = Ranks::here();
    if !ranks.are_many() {
        return Ok(());
    }
    let mut hasher = blake3::Hasher::new();
    for parameter in parameters.values() {
        let values = parameter.as_tensor().to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        for value in values {
            hasher.update(&value.to_le_bytes());
        }
    }
    ranks.check_same("the parameters", hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(lengths: &[usize]) -> Batch {
        let tokens: usize = lengths.iter().sum();
        Batch { input_ids: (0..tokens as u32).collect(), labels: vec![1; tokens], lengths: lengths.to_vec() }
    }

    #[test]
    fn alone_a_rank_computes_each_micro_batch_as_it_is() {
        let batches = [batch(&[2, 3]), batch(&[4])];
        let parts = parts(Ranks::here(), &batches);
        let whole = parts.iter().map(|part| (part.micro_batch, part.first_row, part.batch.as_ref()));
        assert_eq!(whole.collect::<Vec<_>>(), [(0, 0, &batches[0]), (1, 0, &batches[1])]);
    }

    #[test]
    fn the_ranks_parts_are_the_micro_batches() {
        let batches = [batch(&[5, 3, 4]), batch(&[6, 2, 9]), batch(&[1])];
        for size in 1..7 {
            let all: Vec<Vec<Part>> = (0..size).map(|rank| parts(Ranks::fake(rank, size), &batches)).collect();
            for (micro_batch, whole) in batches.iter().enumerate() {
                let mut joined = Batch::default();
                for part in all.iter().flatten().filter(|part| part.micro_batch == micro_batch) {
                    assert_eq!(part.first_row, joined.tokens());
                    joined.input_ids.extend(&part.batch.input_ids);
                    joined.labels.extend(&part.batch.labels);
                    joined.lengths.extend(&part.batch.lengths);
                }
                assert_eq!(joined, *whole, "{size} ranks");
            }
        }
    }
}

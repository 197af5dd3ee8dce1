//! Data parallelism: the samples of a step distributed over the ranks, and their gradients summed.
//!
//! What a step trains on is the same for any number of ranks, so `train.batch_size` and `train.gradient_accumulation`
//! mean what they mean in one process. The samples of all micro-batches, in order, are cut into one stretch per rank,
//! of about equal numbers of tokens; a rank computes its part of each micro-batch that its stretch touches. Every
//! part's loss is divided by the label tokens of the whole step, so the sum of the gradients is the gradient of the
//! step. What follows (penalty, clipping, AdamW) each rank does itself, from the same numbers.

use crate::config::Settings;
use crate::console::log;
use crate::data::Batch;
use crate::ensure_valid;
use crate::error::listing;
use crate::model::{Gradients, Parameters};
use crate::ops::owned;
use crate::ranks::{AllReduce, Ranks};
use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// Gradients are summed in buckets of at least this many elements, except the last.
const BUCKET: usize = 1 << 24;

/// A rank's part of a micro-batch.
pub struct Part<'a> {
    /// Its index within the step.
    pub micro_batch: usize,
    /// The number of the micro-batch's tokens before the part.
    pub first_row: usize,
    pub batch: Cow<'a, Batch>,
}

/// What this rank computes of a step's micro-batches. A single rank computes all of them, unchanged.
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

/// Sums the gradients of `parameters` over the ranks; every parameter has one afterwards.
pub fn sum_gradients(all_reduce: &AllReduce, parameters: &Parameters, gradients: &mut Gradients) -> Result<()> {
    if !all_reduce.are_many() {
        return Ok(());
    }
    for bucket in buckets(parameters, BUCKET) {
        let sums = all_reduce.sum(lay_out(&bucket, gradients)?)?;
        take_out(&bucket, &sums, gradients)?;
    }
    Ok(())
}

/// Parameters by name, in order, in buckets of at least `least` elements, except the last.
fn buckets(parameters: &Parameters, least: usize) -> Vec<Vec<(&str, &Var)>> {
    let (mut buckets, mut bucket, mut elements) = (vec![], vec![], 0);
    for (name, parameter) in parameters {
        bucket.push((name.as_str(), parameter));
        elements += parameter.elem_count();
        if elements >= least {
            buckets.push(std::mem::take(&mut bucket));
            elements = 0;
        }
    }
    if !bucket.is_empty() {
        buckets.push(bucket);
    }
    buckets
}

/// The gradients of a bucket one after another, in separate memory. Zeros for a missing one: no sample of this rank
/// reached that parameter.
fn lay_out(bucket: &[(&str, &Var)], gradients: &Gradients) -> Result<Tensor> {
    let flat = |(name, parameter): &(&str, &Var)| match gradients.get(name) {
        Ok(gradient) => gradient.flatten_all(),
        Err(_) => Tensor::zeros(parameter.elem_count(), DType::F32, parameter.device()),
    };
    let parts = bucket.iter().map(flat).collect::<candle_core::Result<Vec<_>>>()?;
    // One tensor alone is not copied by `cat`.
    Ok(if let [part] = &parts[..] { owned(part)? } else { Tensor::cat(&parts, 0)? })
}

/// Replaces the gradients by their parts of what [`lay_out`] laid out, each a view.
fn take_out(bucket: &[(&str, &Var)], sums: &Tensor, gradients: &mut Gradients) -> Result<()> {
    let mut start = 0;
    for (name, parameter) in bucket {
        let length = parameter.elem_count();
        gradients.set(name, sums.narrow(0, start, length)?.reshape(parameter.shape())?);
        start += length;
    }
    Ok(())
}

/// Makes the ranks ready for a first step: how their gradients are added up. `parameters`: of the model on `device`.
///
/// # Errors
/// GPUs that cannot be connected; parameters that are not the same everywhere.
pub fn join(settings: &Settings, device: &Device, parameters: &Parameters) -> Result<AllReduce> {
    // Not agreed on: if one rank cannot connect its GPU, the others wait for it until it ends the job.
    let all_reduce = connect(device)?;
    check_same_parameters(parameters)?;
    warn_of_idle_ranks(settings);
    Ok(all_reduce)
}

/// How the ranks of this run sum tensors on `device`; logged if it is not the plain way.
fn connect(device: &Device) -> Result<AllReduce> {
    let all_reduce = AllReduce::on(device)?;
    if let Some(version) = all_reduce.nccl_version() {
        log::info(&format!("gradients are summed by NCCL {version}"), json!({"nccl": version}));
    }
    Ok(all_reduce)
}

/// Warns if a step does not have enough samples for all ranks.
fn warn_of_idle_ranks(settings: &Settings) {
    let (ranks, train) = (Ranks::here().size(), &settings.train);
    let samples = train.batch_size.saturating_mul(train.gradient_accumulation);
    // A packed row can be split between its samples.
    if samples < ranks && !settings.data.packing {
        let text = format!(
            "a step has at most {samples} samples (train.batch_size x train.gradient_accumulation), for {ranks} ranks: some \
             have nothing to do"
        );
        log::warn(&text, json!({"samples": samples, "ranks": ranks}));
    }
}

/// Checks that all ranks start the same run. `inputs`: content hashes by key.
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

/// Gives all ranks the first one's parameters.
pub fn take_from_first(parameters: &Parameters) -> Result<()> {
    let ranks = Ranks::here();
    if !ranks.are_many() {
        return Ok(());
    }
    for parameter in parameters.values() {
        let bytes = ranks.of_first(bytes_of(parameter)?);
        let values: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        parameter.set(&Tensor::from_vec(values, parameter.shape(), parameter.device())?)?;
    }
    Ok(())
}

/// A parameter's values, little-endian.
fn bytes_of(parameter: &Var) -> Result<Vec<u8>> {
    let values = parameter.as_tensor().to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// Checks that the ranks' parameters are bit for bit the same: they compute them, and send them only in the end.
pub fn check_same_parameters(parameters: &Parameters) -> Result<()> {
    let ranks = Ranks::here();
    if !ranks.are_many() {
        return Ok(());
    }
    let mut hasher = blake3::Hasher::new();
    for parameter in parameters.values() {
        hasher.update(&bytes_of(parameter)?);
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

    #[test]
    fn gradients_are_laid_out_in_buckets_and_taken_out_again() {
        let shapes = [("a", (2, 3)), ("b", (4, 1)), ("c", (1, 2)), ("d", (3, 5))];
        let var = |shape| Var::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let parameters: Parameters = shapes.iter().map(|(name, shape)| (name.to_string(), var(*shape))).collect();
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (least, lengths) in [(1, &[6, 4, 2, 15][..]), (7, &[10, 17]), (10, &[10, 17]), (100, &[27])] {
            let mut gradients = Gradients::default();
            let gradient = |from: f32, count: f32| Tensor::arange(from, from + count, &Device::Cpu).unwrap();
            gradients.set("a", gradient(1.0, 6.0).reshape((3, 2)).unwrap().t().unwrap());
            gradients.set("b", gradient(10.0, 4.0).reshape((4, 1)).unwrap());
            gradients.set("d", gradient(20.0, 15.0).reshape((3, 5)).unwrap());
            let before = gradients.get("b").unwrap().clone();
            let buckets = buckets(&parameters, least);
            let mut all = vec![];
            for bucket in &buckets {
                let flat = lay_out(bucket, &gradients).unwrap();
                all.extend(values(&flat));
                // In place, as the ranks sum.
                let twice = (&flat * 2.0).unwrap();
                flat.slice_set(&twice, 0, 0).unwrap();
                take_out(bucket, &flat, &mut gradients).unwrap();
            }
            let found: Vec<usize> =
                buckets.iter().map(|bucket| bucket.iter().map(|(_, var)| var.elem_count()).sum()).collect();
            assert_eq!(found, lengths);
            let expected: Vec<f32> =
                [&[1.0, 3.0, 5.0, 2.0, 4.0, 6.0], &[10.0, 11.0, 12.0, 13.0, 0.0, 0.0][..]].concat();
            let expected: Vec<f32> = expected.into_iter().chain((20..35).map(|value| value as f32)).collect();
            assert_eq!(all, expected);
            let after: Vec<f32> = gradients.iter().flat_map(|(_, gradient)| values(gradient)).collect();
            assert_eq!(after, expected.iter().map(|value| value * 2.0).collect::<Vec<_>>());
            let same = gradients
                .iter()
                .zip(shapes)
                .all(|((name, tensor), (other, shape))| name == other && tensor.dims2().unwrap() == shape);
            assert!(same, "names and shapes");
            assert_eq!(values(&before), [10.0, 11.0, 12.0, 13.0], "a gradient that others hold has changed");
        }
    }
}

//! From a dataset file to samples: encode in parallel, cut or drop what is too long, count everything that is left out.

use super::bad::BadRecords;
use super::batch::predicted_labels;
use super::choice::Choice;
use super::control::ControlTokens;
use super::examples::{Encoder, tokenized};
use super::fields::Fields;
use super::records::{self, Place, Record};
use super::template::Template;
use super::{DataOptions, Example, Format, Overlong, epoch_order};
use crate::tokenizer::Tokenizer;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use indicatif::ProgressBar;
use rayon::prelude::*;
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Records encoded at a time.
const CHUNK: usize = 4096;
/// Time that may be spent on bad records to tell how many there are.
const PATIENCE_MILLISECONDS: u64 = 5000;

/// What became of the records of a dataset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Records read.
    pub records: usize,
    /// Samples cut to `max_length`.
    pub truncated: usize,
    /// Samples left out for being longer than `max_length`.
    pub dropped_overlong: usize,
    /// Samples left out because none of their tokens is a label.
    pub dropped_without_labels: usize,
    /// Tokens of the samples kept.
    pub tokens: usize,
    /// Tokens of the samples kept that count in the loss.
    pub label_tokens: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.records - self.dropped_overlong - self.dropped_without_labels;
        write!(
            f,
            "{} records: {kept} samples, {} tokens ({} labels); {} truncated, {} dropped as too long, {} without labels",
            self.records,
            self.tokens,
            self.label_tokens,
            self.truncated,
            self.dropped_overlong,
            self.dropped_without_labels
        )
    }
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.records += other.records;
        self.truncated += other.truncated;
        self.dropped_overlong += other.dropped_overlong;
        self.dropped_without_labels += other.dropped_without_labels;
        self.tokens += other.tokens;
        self.label_tokens += other.label_tokens;
    }
}

/// What was mixed in for a [`Mix`](super::Mix).
#[derive(Clone, Debug, PartialEq)]
pub struct Mixed {
    pub path: PathBuf,
    pub samples: usize,
    /// Samples of the file.
    pub available: usize,
}

impl fmt::Display for Mixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, available, .. } = self;
        write!(f, "{}: {samples} samples mixed in, of {available}", self.path.display())?;
        if samples > available { write!(f, ", some of them several times") } else { Ok(()) }
    }
}

/// Where a sample comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Its file among those of its dataset.
    pub file: usize,
    /// Its place there.
    pub place: Place,
}

/// The samples of a file, or of several, in their order.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The file, or what names the files.
    pub path: PathBuf,
    pub files: Vec<PathBuf>,
    pub examples: Vec<Example>,
    /// Of each sample.
    pub origins: Vec<Origin>,
    /// What `data.mix` added.
    pub mixed: Vec<Mixed>,
    pub counts: Counts,
}

impl Dataset {
    /// Without any sample yet.
    pub fn new(path: &Path, files: Vec<PathBuf>) -> Self {
        let counts = Counts::default();
        Self { path: path.to_path_buf(), files, examples: vec![], origins: vec![], mixed: vec![], counts }
    }

    /// `FILE:line` of a sample, for messages.
    pub fn origin(&self, index: usize) -> String {
        let origin = self.origins.get(index);
        let path = origin.and_then(|origin| self.files.get(origin.file)).unwrap_or(&self.path);
        format!("{}{}", path.display(), origin.map_or(String::new(), |origin| origin.place.to_string()))
    }

    /// Adds a sample of another dataset, whose files begin with number `first_file` here.
    pub fn take(&mut self, other: &Self, sample: usize, first_file: usize) {
        if let (Some(example), Some(origin)) = (other.examples.get(sample), other.origins.get(sample)) {
            self.examples.push(example.clone());
            self.origins.push(Origin { file: first_file + origin.file, place: origin.place });
        }
    }
}

/// The samples of several files, one after another, under the name `path`; those of one file as they are.
pub fn join(mut parts: Vec<Dataset>, path: &Path) -> Dataset {
    if let [_] = parts.as_slice() {
        return parts.remove(0);
    }
    let mut whole = Dataset::new(path, vec![]);
    for mut part in parts {
        let first_file = whole.files.len();
        whole.files.append(&mut part.files);
        whole.examples.append(&mut part.examples);
        whole.origins.extend(part.origins.iter().map(|origin| Origin { file: first_file + origin.file, ..*origin }));
        whole.counts.add(part.counts);
    }
    whole
}

/// Loads the samples of `path` as `options` says, at most the first `max_samples`.
///
/// # Errors
/// An unreadable, malformed or empty file; a record that does not fit the format; a sample without label tokens
/// (unless allowed); nothing left. The error names the first bad records in file order and counts all of them.
pub fn load(path: &Path, options: &DataOptions, tokenizer: &Tokenizer, progress: &ProgressBar) -> Result<Dataset> {
    load_prefixed(path, options, "", tokenizer, progress)
}

/// As [`load`], with `prefix` before each sample's first user message or prompt.
///
/// # Errors
/// As [`load`]; a sample without a user message or prompt, unless the prefix is empty.
pub fn load_prefixed(
    path: &Path,
    options: &DataOptions,
    prefix: &str,
    tokenizer: &Tokenizer,
    progress: &ProgressBar,
) -> Result<Dataset> {
    let template = match options.format {
        Format::Alpaca | Format::Chat | Format::Sharegpt => {
            Some(Template::load(&options.template, &options.template_variables, tokenizer)?)
        }
        Format::PromptCompletion | Format::Text | Format::Tokenized => None,
    };
    let (format, columns, allow_empty) = (options.format, &options.columns, options.allow_empty_labels);
    let control = ControlTokens::new(options.special_tokens_in_content, tokenizer, template.as_ref())?;
    let choice = Choice::new(options);
    let encoder = Encoder { format, columns, prefix, tokenizer, template, choice, allow_empty, control };
    let dataset = load_with(path, options, progress, |record| encoder.encode(record))?;
    encoder.control.report(path);
    Ok(dataset)
}

/// Loads `tokenized` samples, which need no tokenizer. `vocab_size`: bound of their ids, e.g. rows of the embedding.
///
/// # Errors
/// As [`load`].
pub fn load_tokenized(
    path: &Path,
    options: &DataOptions,
    vocab_size: usize,
    progress: &ProgressBar,
) -> Result<Dataset> {
    load_with(path, options, progress, |record| tokenized(&Fields::new(record, &options.columns), vocab_size))
}

fn load_with(
    path: &Path,
    options: &DataOptions,
    progress: &ProgressBar,
    encode: impl Fn(&Record) -> Result<Example> + Sync,
) -> Result<Dataset> {
    ensure_valid!(options.max_length >= 2, "data.max_length is {}, expected at least 2", options.max_length);
    let mut records = records::read(path)?;
    records.truncate(options.max_samples.unwrap_or(usize::MAX));
    progress.set_length(records.len() as u64);
    let counts = Counts { records: records.len(), ..Counts::default() };
    let mut dataset = Dataset { counts, ..Dataset::new(path, vec![path.to_path_buf()]) };
    let (mut bad, mut tried) = (BadRecords::default(), 0);
    let spent = AtomicU64::new(0);
    for chunk in records.chunks(CHUNK) {
        let one = |record: &Record| {
            // With a template that never ends each record takes seconds.
            let wanted = spent.load(Ordering::Relaxed) < PATIENCE_MILLISECONDS;
            let began = Instant::now();
            let example = wanted.then(|| encode(record).inspect(|_| progress.inc(1)))?;
            if example.is_err() {
                spent.fetch_add(began.elapsed().as_millis() as u64, Ordering::Relaxed);
            }
            Some(example)
        };
        let encoded: Vec<Option<Result<Example>>> = chunk.par_iter().map(one).collect();
        for (record, example) in chunk.iter().zip(encoded) {
            let Some(example) = example else { continue };
            tried += 1;
            if let Err(error) = example.and_then(|example| keep(&mut dataset, example, record.place, options)) {
                bad.note(path, record.place, error)?;
            }
        }
    }
    bad.refuse(path, tried, records.len())?;
    ensure_valid!(
        !dataset.examples.is_empty(),
        "dataset {}: no sample is left ({}); raise data.max_length (now {})",
        path.display(),
        dataset.counts,
        options.max_length
    );
    Ok(dataset)
}

/// Adds a sample, cutting it or leaving it out as `options` says.
fn keep(dataset: &mut Dataset, mut example: Example, place: Place, options: &DataOptions) -> Result<()> {
    let (length, limit) = (example.input_ids.len(), options.max_length);
    let whole_labels = predicted_labels(&example.labels);
    if length > limit {
        if options.overlong == Overlong::Drop {
            dataset.counts.dropped_overlong += 1;
            return Ok(());
        }
        dataset.counts.truncated += 1;
        example.input_ids.truncate(limit);
        example.labels.truncate(limit);
    }
    let label_tokens = predicted_labels(&example.labels);
    if label_tokens == 0 {
        ensure_valid!(
            options.allow_empty_labels,
            "no token of this sample is a label{}, or set data.allow_empty_labels = true to leave such samples out",
            if whole_labels > 0 {
                format!(" once its {length} tokens are cut to data.max_length = {limit}; raise that")
            } else {
                " (an empty response, or no response at all); correct or remove the record".to_string()
            }
        );
        // Counted once: a sample left out for lack of labels is not also a truncated one.
        dataset.counts.truncated -= usize::from(length > limit);
        dataset.counts.dropped_without_labels += 1;
        return Ok(());
    }
    dataset.counts.tokens += example.input_ids.len();
    dataset.counts.label_tokens += label_tokens;
    dataset.examples.push(example);
    dataset.origins.push(Origin { file: 0, place });
    Ok(())
}

/// Holds out `share` (between 0 and 1) of the samples, at least one, chosen by `seed`; returns (training, validation),
/// both in file order. Truncated and left-out samples stay counted with the training part.
///
/// # Errors
/// A share outside (0, 1); too few samples to give each part one.
pub fn split_validation(dataset: Dataset, share: f64, seed: u64) -> Result<(Dataset, Dataset)> {
    ensure_valid!(
        share > 0.0 && share < 1.0,
        "data.validation is {share}, expected a share between 0 and 1, or a file"
    );
    let count = dataset.examples.len();
    ensure_valid!(
        count >= 2,
        "dataset {} has {count} sample(s), too few to hold out a share; remove data.validation or name a file",
        dataset.path.display()
    );
    let held_out = ((share * count as f64).round() as usize).clamp(1, count - 1);
    let mut is_held_out = vec![false; count];
    for index in epoch_order(count, seed, VALIDATION_STREAM, true).into_iter().take(held_out) {
        if let Some(flag) = is_held_out.get_mut(index) {
            *flag = true;
        }
    }
    let part = || Dataset::new(&dataset.path, dataset.files.clone());
    let (mut train, mut validation) = (part(), part());
    for ((example, origin), held_out) in dataset.examples.into_iter().zip(dataset.origins).zip(is_held_out) {
        let part = if held_out { &mut validation } else { &mut train };
        part.counts.tokens += example.input_ids.len();
        part.counts.label_tokens += predicted_labels(&example.labels);
        part.examples.push(example);
        part.origins.push(origin);
    }
    validation.counts.records = validation.examples.len();
    let Counts { tokens, label_tokens, .. } = train.counts;
    train.counts =
        Counts { records: dataset.counts.records - validation.counts.records, tokens, label_tokens, ..dataset.counts };
    Ok((train, validation))
}

/// Stream of the seed that no epoch uses.
const VALIDATION_STREAM: u64 = u64::MAX;

/// Refuses ids that the embedding has no row for: a tokenizer may know more tokens than its model.
pub fn check_ids(dataset: &Dataset, vocab_size: usize) -> Result<()> {
    let beyond = dataset.examples.iter().position(|example| {
        example.input_ids.iter().any(|&id| id as usize >= vocab_size)
            || example.labels.iter().any(|&label| label >= vocab_size as i64)
    });
    match beyond {
        None => Ok(()),
        Some(i) => Err(invalid!(
            "{}: a token id is beyond the model's vocab_size of {vocab_size}; tokenizer and model do not belong \
             together",
            dataset.origin(i)
        )),
    }
}

#[cfg(test)]
mod tests;

//! A run's samples: which of those of its sources, in which order, and what was counted on the way.

use super::samples::{Entry, Origin, Samples};
use super::{Batch, Example, collate};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What became of the records of a dataset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
        let kept = self.kept();
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
    /// Samples.
    pub fn kept(&self) -> usize {
        self.records - self.dropped_overlong - self.dropped_without_labels
    }

    pub fn add(&mut self, other: Self) {
        self.records += other.records;
        self.truncated += other.truncated;
        self.dropped_overlong += other.dropped_overlong;
        self.dropped_without_labels += other.dropped_without_labels;
        self.tokens += other.tokens;
        self.label_tokens += other.label_tokens;
    }
}

/// What a run takes of one of its sources.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Taken {
    pub path: PathBuf,
    /// How many samples are drawn; `None` if all are taken, once each.
    pub drawn: Option<usize>,
    /// Samples of the source.
    pub available: usize,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, available) = (self.path.display(), self.available);
        let Some(drawn) = self.drawn else { return write!(f, "{path}: all {available} samples") };
        write!(f, "{path}: {drawn} samples mixed in, of {available}")?;
        if drawn > available { write!(f, ", some of them several times") } else { Ok(()) }
    }
}

/// The samples of a source.
#[derive(Clone, Debug)]
struct Store {
    samples: Arc<Samples>,
    /// The number of its first file in the dataset.
    first_file: usize,
}

/// A sample of a store.
#[derive(Clone, Copy, Debug)]
struct Pick {
    store: u32,
    sample: u32,
}

/// Samples of one source or several, in their order.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The file, or what names the files.
    pub path: PathBuf,
    files: Vec<PathBuf>,
    stores: Vec<Store>,
    picks: Vec<Pick>,
    /// What was taken of each source, if there are several.
    pub sources: Vec<Taken>,
    pub counts: Counts,
}

impl Dataset {
    /// Without any sample yet.
    pub fn new(path: &Path) -> Self {
        let path = path.to_path_buf();
        Self { path, files: vec![], stores: vec![], picks: vec![], sources: vec![], counts: Counts::default() }
    }

    /// All samples of a source.
    pub fn whole(path: &Path, files: Vec<PathBuf>, samples: Samples, counts: Counts) -> Self {
        let picks = (0..samples.len()).map(|sample| Pick { store: 0, sample: sample as u32 }).collect();
        let stores = vec![Store { samples: Arc::new(samples), first_file: 0 }];
        Self { path: path.to_path_buf(), files, stores, picks, sources: vec![], counts }
    }

    pub fn len(&self) -> usize {
        self.picks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.picks.is_empty()
    }

    /// Keeps the first `count` samples.
    pub fn truncate(&mut self, count: usize) {
        self.picks.truncate(count);
    }

    /// # Errors
    /// There is no such sample; the file that holds it cannot be read.
    pub fn example(&self, index: usize) -> Result<Example> {
        self.read(index).map(|(example, _)| example)
    }

    /// All of them, in memory.
    ///
    /// # Errors
    /// As [`Dataset::example`].
    pub fn examples(&self) -> Result<Vec<Example>> {
        (0..self.len()).map(|index| self.example(index)).collect()
    }

    /// Those of `indices`, one after another.
    ///
    /// # Errors
    /// As [`Dataset::example`].
    pub fn batch(&self, indices: &[usize]) -> Result<Batch> {
        let examples: Vec<Example> = indices.iter().map(|&index| self.example(index)).collect::<Result<_>>()?;
        Ok(collate(&examples))
    }

    /// What is known of a sample without reading it; nothing of one that does not exist.
    pub fn entry(&self, index: usize) -> Entry {
        let found = self
            .picks
            .get(index)
            .and_then(|pick| self.stores.get(pick.store as usize)?.samples.entry(pick.sample as usize));
        found.unwrap_or(Entry { at: 0, tokens: 0, label_tokens: 0 })
    }

    /// The number of tokens of each sample.
    pub fn lengths(&self) -> impl Iterator<Item = usize> {
        (0..self.len()).map(|index| self.entry(index).tokens as usize)
    }

    /// `FILE:line` of a sample, for messages.
    pub fn origin(&self, index: usize) -> String {
        match self.read(index) {
            Ok((_, origin)) => {
                let path = self.files.get(origin.file).unwrap_or(&self.path);
                format!("{}{}", path.display(), origin.place)
            }
            Err(_) => self.path.display().to_string(),
        }
    }

    /// The number of a sample's source, and where it is among the files of that.
    ///
    /// # Errors
    /// As [`Dataset::example`].
    pub fn place(&self, index: usize) -> Result<(usize, Origin)> {
        let pick = self.picks.get(index).with_context(|| format!("there is no sample {index}"))?;
        let store = self.stores.get(pick.store as usize).context("a sample of no source")?;
        Ok((pick.store as usize, store.samples.read(pick.sample as usize)?.1))
    }

    /// Bytes that the samples take in memory.
    pub fn resident_bytes(&self) -> usize {
        let stores = self.stores.iter().map(|store| store.samples.resident_bytes()).sum::<usize>();
        stores + self.picks.len() * size_of::<Pick>()
    }

    /// Makes the samples of another dataset ones that can be taken here: where those of its first store are, and after it
    /// those of the others.
    pub fn adopt(&mut self, other: &Self) -> Range<usize> {
        let (first, first_file) = (self.stores.len(), self.files.len());
        let moved = |store: &Store| Store { first_file: first_file + store.first_file, ..store.clone() };
        self.stores.extend(other.stores.iter().map(moved));
        self.files.extend(other.files.iter().cloned());
        first..self.stores.len()
    }

    /// Adds a sample of another dataset, whose stores are `adopted` ones, and counts it.
    pub fn take(&mut self, other: &Self, sample: usize, adopted: &Range<usize>) {
        let Some(pick) = other.picks.get(sample) else { return };
        let Entry { tokens, label_tokens, .. } = other.entry(sample);
        self.picks.push(Pick { store: adopted.start as u32 + pick.store, sample: pick.sample });
        self.counts.records += 1;
        self.counts.tokens += tokens as usize;
        self.counts.label_tokens += label_tokens as usize;
    }

    fn read(&self, index: usize) -> Result<(Example, Origin)> {
        let pick = self.picks.get(index).with_context(|| format!("there is no sample {index}"))?;
        let store = self.stores.get(pick.store as usize).context("a sample of no source")?;
        let (example, origin) = store.samples.read(pick.sample as usize)?;
        Ok((example, Origin { file: store.first_file + origin.file, ..origin }))
    }
}

//! The datasets of a run, as `[data]` names them: training samples and, perhaps, held-out ones.

use super::combine::{Part, combine};
use super::{Before, CacheFolder, DataOptions, Dataset, Files, Reading, Validation};
use crate::hub::{self, Split};
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Error, Result};
use indicatif::ProgressBar;

/// What a run trains on and what it is measured with.
pub struct Sets {
    pub train: Dataset,
    pub validation: Option<Dataset>,
}

/// The files that `data.train`, `data.validation` and `data.mix` name, on this machine.
pub struct SetFiles {
    /// Of each of [`DataOptions::sources`].
    pub sources: Vec<Files>,
    /// Also `None` if a share of the training samples is held out.
    pub validation: Option<Files>,
}

impl SetFiles {
    /// Finds the files, fetching hub datasets if necessary, but none once a file is missing.
    ///
    /// # Errors
    /// As [`hub::resolve_dataset`], for each file.
    pub fn resolve(options: &DataOptions, quiet: bool) -> Result<Self, Vec<Error>> {
        let mut errors = vec![];
        let mut find = |file: &str, split: Split, place: String| {
            let wanted = errors.is_empty() || hub::is_local(file);
            let found = wanted.then(|| hub::resolve_dataset(file, split, quiet).context(place))?;
            found.map(Files::new).map_err(|error| errors.push(error)).ok()
        };
        let sources = options.sources();
        let sources = sources.iter().filter_map(|listed| find(&listed.source.path, Split::Train, listed.place()));
        let sources = sources.collect();
        let validation = match &options.validation {
            Some(Validation::File(file)) => find(file, Split::Validation, "data.validation".to_string()),
            Some(Validation::Share(_)) | None => None,
        };
        if errors.is_empty() { Ok(Self { sources, validation }) } else { Err(errors) }
    }
}

/// What loading samples takes besides the settings of `[data]`.
#[derive(Clone, Copy)]
pub struct Loading<'a> {
    /// `None` if all samples are tokenized already.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Rows of the model's embedding.
    pub vocab_size: usize,
    /// Where tokenised samples may be kept.
    pub cache: Option<&'a CacheFolder>,
    /// Makes a bar for each source.
    pub progress: &'a dyn Fn() -> ProgressBar,
}

impl Loading<'_> {
    /// Loads the samples of one source.
    ///
    /// # Errors
    /// As [`Reading::load`].
    pub fn one(&self, files: &Files, options: &DataOptions, before: Before) -> Result<Dataset> {
        let Self { tokenizer, vocab_size, cache, progress } = *self;
        Reading { options, before, tokenizer, vocab_size, cache }.load(files, &progress())
    }

    /// Why the parts of a training sample are trained on or not, in words.
    ///
    /// # Errors
    /// As [`Reading::explain`].
    pub fn explain(
        &self,
        files: &SetFiles,
        options: &DataOptions,
        train: &Dataset,
        index: usize,
    ) -> Result<Vec<String>> {
        let Self { tokenizer, vocab_size, cache, .. } = *self;
        let (source, origin) = train.place(index)?;
        let (sources, listed) = (&files.sources, options.sources());
        let Some((files, listed)) = sources.iter().zip(&listed).nth(source) else { return Ok(vec![]) };
        let (options, before) = (&options.of_source(listed), listed.source.before());
        Reading { options, before, tokenizer, vocab_size, cache }.explain(files, origin)
    }

    /// Loads the samples of a run; `seed` chooses those that are held out or drawn.
    ///
    /// # Errors
    /// As [`Reading::load`], for each source, and [`combine`].
    pub fn all(&self, files: &SetFiles, options: &DataOptions, seed: u64) -> Result<Sets, Vec<Error>> {
        let mut errors = vec![];
        let mut load = |files: &Files, options: &DataOptions, before: Before, place: String| {
            let set = self.one(files, options, before).context(place);
            set.map_err(|error| errors.push(error)).ok()
        };
        let mut parts = vec![];
        for (files, listed) in files.sources.iter().zip(options.sources()) {
            let (options, place) = (options.of_source(&listed), listed.place());
            if let Some(samples) = load(files, &options, listed.source.before(), place) {
                parts.push(Part { listed, samples });
            }
        }
        let own = files.validation.as_ref();
        let own = own.and_then(|files| load(files, &options.whole(), Before::default(), "data.validation".to_string()));
        if !errors.is_empty() {
            return Err(errors);
        }
        let share = match &options.validation {
            Some(Validation::Share(share)) => Some(*share),
            _ => None,
        };
        let (train, held_out) = combine(parts, share, seed).map_err(|error| vec![error])?;
        Ok(Sets { train, validation: own.or(held_out) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Format, Source};
    use crate::hub::ResolvedData;

    #[test]
    fn only_the_training_file_is_cut_to_max_samples() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, records: usize| {
            let path = dir.path().join(format!("{name}.jsonl"));
            let lines: Vec<String> =
                (0..records).map(|i| format!("{{\"input_ids\": [1, {i}], \"labels\": [1, {i}]}}")).collect();
            std::fs::write(&path, lines.join("\n")).unwrap();
            Files::new(ResolvedData { paths: vec![path], source: name.to_string() })
        };
        let files =
            SetFiles { sources: vec![file("a", 9), file("c", 4), file("d", 7)], validation: Some(file("b", 5)) };
        let options = DataOptions {
            train: "a".into(),
            format: Format::Tokenized,
            max_samples: Some(3),
            mix: vec![Source::default(), Source { count: Some(2), ..Source::default() }],
            ..DataOptions::default()
        };
        let loading = Loading { tokenizer: None, vocab_size: 10, cache: None, progress: &ProgressBar::hidden };
        let sets = loading.all(&files, &options, 0).unwrap();
        assert_eq!(sets.train.len(), 3 + 4 + 2);
        let second: Vec<u32> = (0..3).map(|i| sets.train.example(i).unwrap().input_ids[1]).collect();
        assert_eq!((second, sets.train.counts.records), (vec![0, 1, 2], 9));
        assert_eq!(sets.validation.unwrap().len(), 5);
    }
}

//! The datasets of a run, as `[data]` names them: training samples and, perhaps, held-out ones.

use super::{DataOptions, Dataset, Validation, check_ids, join, load_prefixed, load_tokenized, mix, split_validation};
use crate::hub::{self, ResolvedData, Split};
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Error, Result};
use indicatif::ProgressBar;
use std::path::{Path, PathBuf};

/// What a run trains on and what it is measured with.
pub struct Sets {
    pub train: Dataset,
    pub validation: Option<Dataset>,
}

/// The files that `data.train`, `data.validation` and `data.mix` name, on this machine.
pub struct SetFiles {
    pub train: ResolvedData,
    /// Also `None` if a share of the training samples is held out.
    pub validation: Option<ResolvedData>,
    /// Those of `data.mix`, in its order.
    pub mix: Vec<ResolvedData>,
}

impl SetFiles {
    /// Finds the files, fetching hub datasets if necessary, but none once a file is missing.
    ///
    /// # Errors
    /// As [`hub::resolve_dataset`], for each file.
    pub fn resolve(options: &DataOptions, quiet: bool) -> Result<Self, Vec<Error>> {
        let mut errors = vec![];
        let mut find = |file: &str, split: Split, key: &'static str| {
            let wanted = errors.is_empty() || hub::is_local(file);
            let found = wanted.then(|| hub::resolve_dataset(file, split, quiet).context(key))?;
            found.map_err(|error| errors.push(error)).ok()
        };
        let train = find(&options.train, Split::Train, "data.train");
        let validation = match &options.validation {
            Some(Validation::File(file)) => find(file, Split::Validation, "data.validation"),
            Some(Validation::Share(_)) | None => None,
        };
        let mix = options.mix.iter().filter_map(|wanted| find(&wanted.file, Split::Train, "data.mix")).collect();
        match train {
            Some(train) if errors.is_empty() => Ok(Self { train, validation, mix }),
            _ => Err(errors),
        }
    }
}

/// Loads and checks one dataset; the arguments are those of [`load_sets`] and [`load_prefixed`].
///
/// # Errors
/// As [`load_prefixed`]; an id that the embedding has no row for.
pub fn load_set(
    data: &ResolvedData,
    options: &DataOptions,
    prefix: &str,
    tokenizer: Option<&Tokenizer>,
    vocab_size: usize,
    progress: &ProgressBar,
) -> Result<Dataset> {
    let load = |path: &PathBuf, max_samples: Option<usize>| {
        let options = &DataOptions { max_samples, ..options.clone() };
        match tokenizer {
            Some(tokenizer) => load_prefixed(path, options, prefix, tokenizer, progress),
            None => load_tokenized(path, options, vocab_size, progress),
        }
    };
    let (mut files, mut wanted) = (vec![], options.max_samples);
    for path in data.paths.iter() {
        if wanted == Some(0) {
            break;
        }
        let file = load(path, wanted)?;
        wanted = wanted.map(|wanted| wanted.saturating_sub(file.counts.records));
        files.push(file);
    }
    let dataset = join(files, Path::new(&data.source));
    progress.finish_and_clear();
    check_ids(&dataset, vocab_size)?;
    Ok(dataset)
}

/// Loads, splits and checks the datasets of a run. `tokenizer` is `None` if the samples are tokenized already;
/// `vocab_size`: rows of the model's embedding; `seed` chooses a held-out share; `progress` makes a bar for each file.
///
/// # Errors
/// As [`load`], for each file, and [`split_validation`]; an id that the embedding has no row for.
pub fn load_sets(
    files: &SetFiles,
    options: &DataOptions,
    seed: u64,
    tokenizer: Option<&Tokenizer>,
    vocab_size: usize,
    progress: &dyn Fn() -> ProgressBar,
) -> Result<Sets, Vec<Error>> {
    let (mut errors, whole) = (vec![], options.whole());
    let mut load = |file: &ResolvedData, options: &DataOptions, prefix: &str, key: &'static str| {
        let set = load_set(file, options, prefix, tokenizer, vocab_size, &progress()).context(key);
        set.map_err(|error| errors.push(error)).ok()
    };
    let train = load(&files.train, options, "", "data.train");
    let validation = files.validation.as_ref().and_then(|file| load(file, &whole, "", "data.validation"));
    let parts = files.mix.iter().zip(&options.mix);
    let parts = parts.filter_map(|(file, wanted)| load(file, &whole, &wanted.prefix, "data.mix"));
    let parts: Vec<Dataset> = parts.collect();
    let Some(train) = train.filter(|_| errors.is_empty()) else { return Err(errors) };
    let mut sets = match (validation, &options.validation) {
        (None, Some(Validation::Share(share))) => {
            let (train, validation) = split_validation(train, *share, seed).map_err(|error| vec![error])?;
            Sets { train, validation: Some(validation) }
        }
        (validation, _) => Sets { train, validation },
    };
    // After the held-out share is taken, which is to measure the task alone.
    mix(&mut sets.train, parts, &options.mix, seed).map_err(|error| vec![error])?;
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Format, Mix};

    #[test]
    fn only_the_training_file_is_cut_to_max_samples() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, records: usize| {
            let path = dir.path().join(format!("{name}.jsonl"));
            let lines: Vec<String> =
                (0..records).map(|i| format!("{{\"input_ids\": [1, {i}], \"labels\": [1, {i}]}}")).collect();
            std::fs::write(&path, lines.join("\n")).unwrap();
            ResolvedData { paths: vec![path], source: name.to_string() }
        };
        let files =
            SetFiles { train: file("a", 9), validation: Some(file("b", 5)), mix: vec![file("c", 4), file("d", 7)] };
        let options = DataOptions {
            format: Format::Tokenized,
            max_samples: Some(3),
            mix: vec![Mix::default(), Mix { count: Some(2), ..Mix::default() }],
            ..DataOptions::default()
        };
        let sets = load_sets(&files, &options, 0, None, 10, &ProgressBar::hidden).unwrap();
        assert_eq!(sets.train.examples.len(), 3 + 4 + 2);
        let second: Vec<u32> = sets.train.examples.iter().take(3).map(|example| example.input_ids[1]).collect();
        assert_eq!((second, sets.train.counts.records), (vec![0, 1, 2], 9));
        assert_eq!(sets.validation.unwrap().examples.len(), 5);
    }
}

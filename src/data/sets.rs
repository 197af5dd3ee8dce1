//! The datasets of a run, as `[data]` names them: training samples and, perhaps, held-out ones.

use super::{DataOptions, Dataset, Validation, check_ids, load, load_tokenized, split_validation};
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result};
use indicatif::ProgressBar;
use std::path::PathBuf;

/// What a run trains on and what it is measured with.
pub struct Sets {
    pub train: Dataset,
    pub validation: Option<Dataset>,
}

/// The file that `data.train` or `data.validation` names.
pub fn dataset_file(name: &str) -> Result<PathBuf> {
    Ok(PathBuf::from(name))
}

/// Loads, splits and checks the datasets of a run. `tokenizer` is `None` where the samples are tokenized already;
/// `vocab_size`: rows of the model's embedding; `seed` chooses a held-out share; `progress` makes a bar for each file.
///
/// # Errors
/// As [`load`] and [`split_validation`]; an id that the embedding has no row for.
pub fn load_sets(
    options: &DataOptions,
    seed: u64,
    tokenizer: Option<&Tokenizer>,
    vocab_size: usize,
    progress: &dyn Fn() -> ProgressBar,
) -> Result<Sets> {
    let load = |name: &str| {
        let (path, progress) = (dataset_file(name)?, progress());
        let dataset = match tokenizer {
            Some(tokenizer) => load(&path, options, tokenizer, &progress)?,
            None => load_tokenized(&path, options, vocab_size, &progress)?,
        };
        progress.finish_and_clear();
        check_ids(&dataset, vocab_size)?;
        Ok::<_, anyhow::Error>(dataset)
    };
    let train = load(&options.train).context("data.train")?;
    Ok(match &options.validation {
        None => Sets { train, validation: None },
        Some(Validation::File(name)) => Sets { train, validation: Some(load(name).context("data.validation")?) },
        Some(Validation::Share(share)) => {
            let (train, validation) = split_validation(train, *share, seed)?;
            Sets { train, validation: Some(validation) }
        }
    })
}

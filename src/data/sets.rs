//! The datasets of a run, as `[data]` names them: training samples and, perhaps, held-out ones.

use super::{DataOptions, Dataset, Validation, check_ids, load_prefixed, load_tokenized, mix, split_validation};
use crate::hub::{self, ResolvedFile, Split};
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result};
use indicatif::ProgressBar;

/// What a run trains on and what it is measured with.
pub struct Sets {
    pub train: Dataset,
    pub validation: Option<Dataset>,
}

/// The files that `data.train`, `data.validation` and `data.mix` name, on this machine.
pub struct SetFiles {
    pub train: ResolvedFile,
    /// `None` too where a share of the training samples is held out.
    pub validation: Option<ResolvedFile>,
    /// Those of `data.mix`, in its order.
    pub mix: Vec<ResolvedFile>,
}

impl SetFiles {
    /// Finds the files, fetching hub datasets if need be.
    ///
    /// # Errors
    /// As [`hub::resolve_dataset`].
    pub fn resolve(options: &DataOptions, quiet: bool) -> Result<Self> {
        let train = hub::resolve_dataset(&options.train, Split::Train, quiet).context("data.train")?;
        let validation = match &options.validation {
            Some(Validation::File(file)) => {
                Some(hub::resolve_dataset(file, Split::Validation, quiet).context("data.validation")?)
            }
            Some(Validation::Share(_)) | None => None,
        };
        let mix = |file: &str| hub::resolve_dataset(file, Split::Train, quiet).context("data.mix");
        let mix = options.mix.iter().map(|wanted| mix(&wanted.file)).collect::<Result<_>>()?;
        Ok(Self { train, validation, mix })
    }
}

/// Loads and checks one dataset; the arguments are those of [`load_sets`] and [`load_prefixed`].
///
/// # Errors
/// As [`load_prefixed`]; an id that the embedding has no row for.
pub fn load_set(
    file: &ResolvedFile,
    options: &DataOptions,
    prefix: &str,
    tokenizer: Option<&Tokenizer>,
    vocab_size: usize,
    progress: &ProgressBar,
) -> Result<Dataset> {
    let dataset = match tokenizer {
        Some(tokenizer) => load_prefixed(&file.path, options, prefix, tokenizer, progress)?,
        None => load_tokenized(&file.path, options, vocab_size, progress)?,
    };
    progress.finish_and_clear();
    check_ids(&dataset, vocab_size)?;
    Ok(dataset)
}

/// Loads, splits and checks the datasets of a run. `tokenizer` is `None` where the samples are tokenized already;
/// `vocab_size`: rows of the model's embedding; `seed` chooses a held-out share; `progress` makes a bar for each file.
///
/// # Errors
/// As [`load`] and [`split_validation`]; an id that the embedding has no row for.
pub fn load_sets(
    files: &SetFiles,
    options: &DataOptions,
    seed: u64,
    tokenizer: Option<&Tokenizer>,
    vocab_size: usize,
    progress: &dyn Fn() -> ProgressBar,
) -> Result<Sets> {
    let load = |file: &ResolvedFile, prefix: &str| load_set(file, options, prefix, tokenizer, vocab_size, &progress());
    let train = load(&files.train, "").context("data.train")?;
    let mut sets = match (&files.validation, &options.validation) {
        (Some(file), _) => Sets { train, validation: Some(load(file, "").context("data.validation")?) },
        (None, Some(Validation::Share(share))) => {
            let (train, validation) = split_validation(train, *share, seed)?;
            Sets { train, validation: Some(validation) }
        }
        (None, _) => Sets { train, validation: None },
    };
    // After the held-out share is taken: that is to tell about the task.
    let parts = files.mix.iter().zip(&options.mix).map(|(file, wanted)| load(file, &wanted.prefix).context("data.mix"));
    mix(&mut sets.train, parts.collect::<Result<_>>()?, &options.mix, seed)?;
    Ok(sets)
}

//! Everything that must be right before step 1: inputs found, read, checked against one another.
//!
//! Nothing is written here but the direction file, and that only when all else stands.

use super::penalties::Penalties;
use super::probe::check_gradients;
use super::{Method, Plan, Trainer};
use crate::adapter::{self, Adapter, BaseIdentity};
use crate::checkpoint::Checkpoint;
use crate::config::Settings;
use crate::data::{self, Dataset, Format, Sets, Validation};
use crate::hub::{self, Resolved};
use crate::invalid;
use crate::method::direction::{self, DirectionRequest};
use crate::method::direction_file::Directions;
use crate::method::factorize::{DEFAULT_TOLERANCE, Keep};
use crate::model::{Decoder, ModelSpec};
use crate::names::{Targets, resolve_targets};
use crate::report::{RunRecord, hash_file, progress_bar};
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result};
use candle_core::Device;
use std::path::{Path, PathBuf};

/// A run that is ready for step 1.
pub struct Prepared {
    pub base: Resolved,
    pub checkpoint: Checkpoint,
    pub trainer: Trainer,
    /// As it was before training; `None` in full tuning.
    pub adapter: Option<Adapter>,
    pub train: Dataset,
    pub validation: Option<Dataset>,
    pub plan: Plan,
    pub pad_id: u32,
    pub record: RunRecord,
}

/// Loads and checks all inputs of a run. `quiet` hides progress bars.
pub fn prepare(settings: &Settings, quiet: bool) -> Result<Prepared> {
    let mut record = RunRecord::start();
    let base = hub::resolve(&settings.model.aligned).context("model.aligned")?;
    let spec = ModelSpec::load(&base.dir)?;
    let checkpoint = Checkpoint::open(&base.dir)?;
    let targets = resolve_targets(&settings.lora.target_modules, &spec.linear_modules()).context("lora")?;
    let device = settings.model.device.open()?;
    let adapter = match settings.train.method {
        Method::Lora => Some(initial_adapter(settings, &spec, &checkpoint, &base, &targets, &device, quiet)?),
        Method::Full => None,
    };
    let targets = adapter.as_ref().map_or(targets, |adapter| adapter.modules.keys().cloned().collect());
    let (train, validation, pad_id) = datasets(settings, &base, &spec, quiet, &mut record)?;
    let plan = Plan::new(train.examples.len(), &settings.train, &settings.data)?;
    let progress = bar(0, "loading model", quiet);
    let mut model = Decoder::load(&spec, &checkpoint, &device, adapter.is_none(), &progress)?;
    progress.finish_and_clear();
    if let Some(adapter) = &adapter {
        let (loras, parameters) = adapter.trainable()?;
        model.attach(loras, parameters)?;
    }
    check_gradients(&model, &train.examples).context("checking that everything trains")?;
    // Last, for it may write a file: everything cheaper to find wrong has been looked at.
    let directions = directions(settings, &base, &spec, &checkpoint, &targets, quiet, &mut record)?;
    let penalties = Penalties::new(&settings.asft, &targets, directions.as_ref(), adapter.as_ref(), &model)?;
    let dropout = adapter.as_ref().is_some_and(|adapter| adapter.dropout > 0.0);
    let trainer = Trainer::new(model, penalties, &settings.train, dropout);
    Ok(Prepared { base, checkpoint, trainer, adapter, train, validation, plan, pad_id, record })
}

fn bar(len: usize, what: &'static str, quiet: bool) -> indicatif::ProgressBar {
    if quiet { indicatif::ProgressBar::hidden() } else { progress_bar(len, what) }
}

/// A fresh adapter on the targets, or the one to continue, with the dropout of this run.
fn initial_adapter(
    settings: &Settings,
    spec: &ModelSpec,
    checkpoint: &Checkpoint,
    base: &Resolved,
    targets: &[String],
    device: &Device,
    quiet: bool,
) -> Result<Adapter> {
    let options = &settings.lora;
    let mut adapter = match &options.init_adapter {
        Some(dir) => {
            let adapter = adapter::load(Path::new(dir), device).context("lora.init_adapter")?;
            adapter.check_fits(spec).context("lora.init_adapter")?;
            BaseIdentity::check(Path::new(dir), &adapter, checkpoint).context("lora.init_adapter")?;
            if !quiet {
                eprintln!("continuing {dir}: rank, alpha and target modules are that adapter's, not the config's");
            }
            adapter
        }
        None => Adapter {
            modules: adapter::fresh_modules(
                spec,
                targets,
                options.rank,
                options.alpha as f64,
                settings.train.seed,
                device,
            )?,
            use_rslora: options.use_rslora,
            dropout: 0.0,
            base: None,
            revision: None,
        },
    };
    adapter.dropout = options.dropout;
    adapter.base = Some(base.id.clone().unwrap_or_else(|| settings.model.aligned.clone()));
    adapter.revision = base.revision.clone();
    Ok(adapter)
}

/// Training set, validation set, and the id that pads.
fn datasets(
    settings: &Settings,
    base: &Resolved,
    spec: &ModelSpec,
    quiet: bool,
    record: &mut RunRecord,
) -> Result<(Dataset, Option<Dataset>, u32)> {
    let options = &settings.data;
    let tokenizer = match options.format {
        Format::Tokenized => None,
        _ => Some(Tokenizer::load(&base.dir)?),
    };
    let progress = || bar(0, "tokenising", quiet);
    let Sets { train, validation } =
        data::load_sets(options, settings.train.seed, tokenizer.as_ref(), spec.vocab_size, &progress)?;
    let is_file = matches!(options.validation, Some(Validation::File(_)));
    for (name, dataset) in [("train", Some(&train)), ("validation", validation.as_ref())] {
        let Some(dataset) = dataset else { continue };
        let path = dataset.path.display();
        if name == "train" || is_file {
            record.input(name, &path.to_string(), hash_file(&dataset.path)?);
        }
        if !quiet {
            eprintln!("{name}: {path}: {}", dataset.counts);
        }
    }
    let pad_id = tokenizer.as_ref().map_or(0, Tokenizer::pad_id).min(spec.vocab_size as u32 - 1);
    Ok((train, validation, pad_id))
}

/// The direction file, opened or computed, checked against the targets and the aligned weights.
fn directions(
    settings: &Settings,
    base: &Resolved,
    spec: &ModelSpec,
    checkpoint: &Checkpoint,
    targets: &[String],
    quiet: bool,
    record: &mut RunRecord,
) -> Result<Option<Directions>> {
    let options = &settings.asft;
    if !options.needs_direction() || options.lambda == 0.0 {
        return Ok(None);
    }
    let path = match (&options.direction, &settings.model.unaligned) {
        (Some(file), unaligned) => {
            if unaligned.is_some() && !quiet {
                eprintln!("asft.direction is given: model.unaligned is not read");
            }
            PathBuf::from(file)
        }
        (None, Some(unaligned)) => {
            let path = super::run::direction_path(settings);
            let progress = bar(0, "computing direction", quiet);
            let request = DirectionRequest {
                aligned: base.clone(),
                unaligned: hub::resolve(unaligned).context("model.unaligned")?,
                targets: Targets::List(targets.to_vec()),
                keep: Keep::Tolerance(DEFAULT_TOLERANCE),
                allow_missing: false,
                out: path.clone(),
            };
            direction::compute(&request, &progress)?;
            progress.finish_and_clear();
            path
        }
        (None, None) => return Err(invalid!("one of model.unaligned and asft.direction is required")),
    };
    let directions = Directions::open(&path)?;
    let shapes: Vec<(String, (usize, usize))> = targets
        .iter()
        .filter_map(|module| adapter::module_shape(spec, module).map(|shape| (module.clone(), shape)))
        .collect();
    directions.check_against(&shapes, checkpoint)?;
    record.input("direction", &path.display().to_string(), hash_file(&path)?);
    let flat = targets.iter().filter(|m| directions.shape(m).is_some_and(|(_, _, k)| k == 0)).count();
    if flat > 0 && !quiet {
        eprintln!(
            "{flat} of {} targeted modules are equal in both models: there the penalty is plain shrinkage",
            targets.len()
        );
    }
    Ok(Some(directions))
}

//! Everything that must be right before step 1: inputs found, read, checked against one another.
//!
//! Nothing is written here but the direction file, and that only when all else stands.

use super::penalties::Penalties;
use super::probe::check_gradients;
use super::{Method, Plan, Trainer};
use crate::adapter::{self, Adapter, BaseIdentity};
use crate::checkpoint::Checkpoint;
use crate::config::Settings;
use crate::data::{self, Dataset, Format, SetFiles, Sets};
use crate::error::listing;
use crate::hub::{self, Resolved};
use crate::method::direction::{self, DirectionRequest};
use crate::method::direction_file::Directions;
use crate::method::factorize::{DEFAULT_TOLERANCE, Keep};
use crate::model::{Decoder, ModelSpec};
use crate::names::{Targets, resolve_targets};
use crate::report::{RunRecord, hash_file, progress_bar};
use crate::tokenizer::Tokenizer;
use crate::{ensure_valid, invalid};
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
    pub record: RunRecord,
}

/// Loads and checks all inputs of a run. `quiet` hides progress bars.
pub fn prepare(settings: &Settings, quiet: bool) -> Result<Prepared> {
    let mut record = RunRecord::start();
    let inputs = Inputs::resolve(settings, quiet)?;
    let base = &inputs.base;
    let spec = ModelSpec::load(&base.dir)?;
    let checkpoint = Checkpoint::open(&base.dir)?;
    let targets = resolve_targets(&settings.lora.target_modules, &spec.linear_modules()).context("lora")?;
    let device = settings.model.device.open()?;
    let adapter = match settings.train.method {
        Method::Lora => Some(initial_adapter(settings, &spec, &checkpoint, base, &targets, &device, quiet)?),
        Method::Full => None,
    };
    let targets = adapter.as_ref().map_or(targets, |adapter| adapter.modules.keys().cloned().collect());
    let (train, validation) = datasets(settings, &inputs, &spec, quiet, &mut record)?;
    let lengths: Vec<usize> = train.examples.iter().map(|example| example.input_ids.len()).collect();
    let plan = Plan::new(&lengths, &settings.train, &settings.data)?;
    let progress = bar(0, "loading model", quiet);
    let mut model =
        Decoder::load(&spec, &checkpoint, (&device, settings.model.dtype.into()), adapter.is_none(), &progress)?;
    progress.finish_and_clear();
    if let Some(adapter) = &adapter {
        let (loras, parameters) = adapter.trainable()?;
        model.attach(loras, parameters)?;
    }
    record.input("aligned", &source(&inputs.base), checkpoint.content_hash(checkpoint.names())?);
    if let Some(dir) = settings.lora.init_adapter.as_ref() {
        record.input("init_adapter", dir, adapter::content_hash(Path::new(dir))?);
    }
    check_gradients(&model, &train.examples).context("checking that everything trains")?;
    // Last, for it may write a file: everything cheaper to find wrong has been looked at.
    let directions = directions(settings, &inputs, &spec, &checkpoint, &targets, quiet, &mut record)?;
    let penalties = Penalties::new(&settings.asft, &targets, directions.as_ref(), adapter.as_ref(), &model)?;
    let dropout = adapter.as_ref().is_some_and(|adapter| adapter.dropout > 0.0);
    let trainer = Trainer::new(model, penalties, &settings.train, dropout);
    Ok(Prepared { base: inputs.base, checkpoint, trainer, adapter, train, validation, plan, record })
}

/// Every folder and file that a run reads, fetched if need be, before anything is loaded: a mistake in the last should
/// not be found after hours of downloading the first.
struct Inputs {
    base: Resolved,
    /// If a direction is to be computed.
    unaligned: Option<Resolved>,
    data: SetFiles,
}

impl Inputs {
    fn resolve(settings: &Settings, quiet: bool) -> Result<Self> {
        let Settings { data, asft, model, .. } = settings;
        let data = SetFiles::resolve(data, quiet)?;
        if let Some(file) = asft.direction.as_ref().filter(|_| uses_direction(settings)) {
            ensure_valid!(Path::new(file).is_file(), "asft.direction: direction file {file} does not exist");
        }
        let base = hub::resolve(&model.aligned, quiet).context("model.aligned")?;
        let computed = uses_direction(settings) && asft.direction.is_none();
        let unaligned = model.unaligned.as_ref().filter(|_| computed);
        let unaligned = unaligned.map(|id| hub::resolve(id, quiet)).transpose().context("model.unaligned")?;
        // Headers only: its weights are read when the direction is computed.
        unaligned.as_ref().map(|model| Checkpoint::open(&model.dir)).transpose().context("model.unaligned")?;
        Ok(Self { base, unaligned, data })
    }
}

/// A folder, or a hub id with its revision.
fn source(model: &Resolved) -> String {
    match (&model.id, &model.revision) {
        (Some(id), Some(revision)) => format!("{id}@{revision}"),
        (Some(id), None) => id.clone(),
        (None, _) => model.dir.display().to_string(),
    }
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
        None => {
            check_sizes(spec, checkpoint, targets, options.rank)?;
            let (alpha, seed) = (options.alpha as f64, settings.train.seed);
            let modules = adapter::fresh_modules(spec, targets, options.rank, alpha, seed, device)?;
            Adapter { modules, use_rslora: options.use_rslora, dropout: 0.0, base: None, revision: None }
        }
    };
    adapter.dropout = options.dropout;
    adapter.base = Some(base.id.clone().unwrap_or_else(|| settings.model.aligned.clone()));
    adapter.revision = base.revision.clone();
    Ok(adapter)
}

/// Checks before anything is allocated that the targets are as large as config.json says, and `rank` no larger.
fn check_sizes(spec: &ModelSpec, checkpoint: &Checkpoint, targets: &[String], rank: usize) -> Result<()> {
    let (mut problems, mut largest) = (vec![], 0);
    for module in targets {
        let name = format!("{module}.weight");
        let expected = adapter::module_shape(spec, module).map_or(vec![], |(d_out, d_in)| vec![d_out, d_in]);
        match checkpoint.info(&name) {
            Some(info) if info.shape == expected => largest = largest.max(*expected.iter().max().unwrap_or(&0)),
            Some(info) => problems.push(format!("{name} has shape {:?}, expected {expected:?}", info.shape)),
            None => problems.push(format!("{name} is missing")),
        }
    }
    ensure_valid!(problems.is_empty(), "the weights do not fit config.json: {}", listing(&problems, 12));
    ensure_valid!(rank <= largest, "lora.rank is {rank}, beyond the largest side of any targeted weight ({largest})");
    Ok(())
}

/// Training set and validation set.
fn datasets(
    settings: &Settings,
    inputs: &Inputs,
    spec: &ModelSpec,
    quiet: bool,
    record: &mut RunRecord,
) -> Result<(Dataset, Option<Dataset>)> {
    let options = &settings.data;
    let tokenizer = match options.format {
        Format::Tokenized => None,
        _ => Some(Tokenizer::load(&inputs.base.dir)?),
    };
    let progress = || bar(0, "tokenising", quiet);
    let Sets { train, validation } =
        data::load_sets(&inputs.data, options, settings.train.seed, tokenizer.as_ref(), spec.vocab_size, &progress)?;
    for (name, file) in [("train", Some(&inputs.data.train)), ("validation", inputs.data.validation.as_ref())] {
        let Some(file) = file else { continue };
        record.input(name, &file.source, hash_file(&file.path)?);
    }
    if !quiet {
        eprintln!("train: {}: {}", inputs.data.train.source, train.counts);
        if let Some(validation) = &validation {
            let file = inputs.data.validation.as_ref().unwrap_or(&inputs.data.train);
            eprintln!("validation: {}: {}", file.source, validation.counts);
        }
        let beyond = train.examples.iter().filter(|example| example.input_ids.len() > spec.context()).count();
        if beyond > 0 {
            eprintln!(
                "warning: {beyond} training samples are longer than the model's context of {}; data.max_length cuts them",
                spec.context()
            );
        }
    }
    Ok((train, validation))
}

fn uses_direction(settings: &Settings) -> bool {
    settings.asft.needs_direction() && settings.asft.lambda != 0.0
}

/// The direction file, opened or computed, checked against the targets and the aligned weights.
fn directions(
    settings: &Settings,
    inputs: &Inputs,
    spec: &ModelSpec,
    checkpoint: &Checkpoint,
    targets: &[String],
    quiet: bool,
    record: &mut RunRecord,
) -> Result<Option<Directions>> {
    let options = &settings.asft;
    if !uses_direction(settings) {
        return Ok(None);
    }
    let path = match (&options.direction, &inputs.unaligned) {
        (Some(file), _) => {
            if settings.model.unaligned.is_some() && !quiet {
                eprintln!("asft.direction is given: model.unaligned is not read");
            }
            PathBuf::from(file)
        }
        (None, Some(unaligned)) => {
            let path = super::run::direction_path(settings);
            let progress = bar(0, "computing direction", quiet);
            let request = DirectionRequest {
                aligned: inputs.base.clone(),
                unaligned: unaligned.clone(),
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
    let unaligned = &directions.header().unaligned;
    let revision = unaligned.revision.as_ref().map_or(String::new(), |revision| format!("@{revision}"));
    record.input("unaligned", &format!("{}{revision}", unaligned.id), unaligned.hash.clone());
    let flat = targets.iter().filter(|m| directions.shape(m).is_some_and(|(_, _, k)| k == 0)).count();
    if flat > 0 && !quiet {
        eprintln!(
            "{flat} of {} targeted modules are equal in both models: there the penalty is plain shrinkage",
            targets.len()
        );
    }
    Ok(Some(directions))
}

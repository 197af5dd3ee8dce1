//! From checked inputs to a run that is ready for its first step.
//!
//! Nothing is written here except the direction file, and that only once all else has succeeded.

use super::given_direction::{flat_modules, open_direction};
use super::memory::MemoryPlan;
use super::preflight::{Direction, Ready, preflight};
use super::resume::Start;
use crate::config::Settings;
use crate::console::{log, progress_bar};
use crate::data::Dataset;
use crate::doctor;
use crate::eval::Prepared as Suite;
use crate::method::direction;
use crate::method::direction_file::Directions;
use crate::model::{Decoder, Weights};
use crate::ranks::Ranks;
use crate::report::RunRecord;
use crate::train::defence::{self, Defence};
use crate::train::evaluating::SUITE;
use crate::train::folder::output::OutputFolder;
use crate::train::folder::trained::Trained;
use crate::train::plan::Pool;
use crate::train::step::parallel::check_same_run;
use crate::train::step::penalties::Penalties;
use crate::train::step::probe::check_gradients;
use crate::train::step::trainer::Trainer;
use anyhow::{Context, Result};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Instant;

/// A run that is ready for a step.
pub struct Prepared {
    pub trained: Trained,
    pub train: Pool,
    pub validation: Option<Dataset>,
    /// The evaluations of `[eval]`.
    pub suite: Option<Suite>,
    pub record: RunRecord,
    pub memory: MemoryPlan,
}

/// Checks and loads all inputs of a run, and sets it to where `start` says. `allowed`: keys of inputs that may have
/// changed since. If it fails on any rank, it fails on all, and what was written is removed.
pub fn prepare(settings: &Settings, output: &OutputFolder, start: &Start, allowed: &[String]) -> Result<Prepared> {
    Ranks::here().agree(load(settings, output, start, allowed)).inspect_err(|_| output.undo())
}

fn load(settings: &Settings, output: &OutputFolder, start: &Start, allowed: &[String]) -> Result<Prepared> {
    let ranks = Ranks::here();
    let ready = preflight(settings, output, start)
        .and_then(|ready| check_inputs(settings, &ready, start, allowed).map(|()| ready));
    let mut ready = ranks.agree(ready)?;
    check_same_run(settings, &input_hashes(settings, &ready.record), &ready.device)?;
    let (train, defence) = ready.inputs.planned(settings)?;
    ranks.agree(check_device(settings, &ready))?;
    let model = ranks.agree(load_model(settings, &ready))?;
    // Last, since it may write a file: everything cheaper has been checked.
    let directions = directions(&mut ready)?;
    check_inputs(settings, &ready, start, allowed)?;
    let mut trainer = trainer(settings, &ready, model, defence, directions.as_ref())?;
    trainer.defence.start(&mut trainer.model).context("defence")?;
    let inputs = input_hashes(settings, &ready.record);
    let mut trained = Trained::new(trainer, ready.base, ready.checkpoint, ready.adapter, directions, inputs);
    if let Some(saved) = start.saved() {
        saved.restore(&mut trained)?;
    }
    let (validation, suite, record) = (ready.inputs.validation, ready.suite, ready.record);
    Ok(Prepared { trained, train, validation, suite, record, memory: ready.memory })
}

fn trainer(
    settings: &Settings,
    ready: &Ready,
    model: Decoder,
    defence: Box<dyn Defence>,
    directions: Option<&Directions>,
) -> Result<Trainer> {
    let (adapter, log_modules_every) = (ready.adapter.as_ref(), settings.output.log_modules_every);
    let penalties = if log_modules_every.is_some() { Penalties::measured } else { Penalties::new };
    let penalties = penalties(&settings.asft, &ready.targets, directions, adapter, &model)?;
    let dropout = adapter.is_some_and(|adapter| adapter.dropout > 0.0);
    let mut trainer = Trainer::new(model, penalties, &settings.train, dropout);
    trainer.optimizer.set_lora_b_ratio(settings.lora.loraplus_lr_ratio.unwrap_or(1.0));
    trainer.log_modules_every = log_modules_every;
    trainer.defence = defence;
    Ok(trainer)
}

/// The content hash of each input by the key that names it.
fn input_hashes(settings: &Settings, record: &RunRecord) -> BTreeMap<String, String> {
    let own = defence::of(&settings.defence).needs().samples;
    let key = |name: &str| match name {
        "aligned" | "model_files" => Some("model.aligned"),
        "direction" if settings.asft.direction.is_some() => Some("asft.direction"),
        "direction" => Some("model.unaligned"),
        "validation" => Some("data.validation"),
        "template" => Some("data.template"),
        name if own.as_ref().is_some_and(|own| own.name == name) => own.as_ref().map(|own| own.key),
        name if name == "train" || name.starts_with("train-") => Some("data.train"),
        name if name.starts_with("mix-") => Some("data.mix"),
        name if name.starts_with("suite") => Some(SUITE),
        // Contained in the direction, and in the checkpoint's adapter.
        _ => None,
    };
    let mut hashes = BTreeMap::<String, String>::new();
    for (name, hash) in record.hashes() {
        if let Some(key) = key(name) {
            hashes.entry(key.to_string()).or_default().push_str(hash);
        }
    }
    hashes
}

fn check_inputs(settings: &Settings, ready: &Ready, start: &Start, allowed: &[String]) -> Result<()> {
    let now = input_hashes(settings, &ready.record);
    start.saved().map_or(Ok(()), |saved| saved.origin.check_inputs(&now, allowed))
}

/// On the CPU the tests have seen to it.
fn check_device(settings: &Settings, ready: &Ready) -> Result<()> {
    if ready.device.is_cpu() {
        return Ok(());
    }
    let began = Instant::now();
    doctor::before_training(&ready.device, settings.model.dtype.into())?;
    let seconds = began.elapsed().as_secs_f64();
    log::debug(&format!("checked the device in {seconds:.1} s"), json!({"seconds": seconds}));
    Ok(())
}

/// The model at the start of training.
fn load_model(settings: &Settings, ready: &Ready) -> Result<Decoder> {
    let (progress, began) = (progress_bar(0, "loading model"), Instant::now());
    let place = (&ready.device, settings.model.dtype.into());
    let weights = if ready.adapter.is_some() { settings.model.compute().frozen() } else { Weights::Trained };
    let mut model = Decoder::load(&ready.spec, &ready.checkpoint, place, weights, &progress)?;
    progress.finish_and_clear();
    let seconds = began.elapsed().as_secs_f64();
    log::debug(&format!("loaded the model in {seconds:.1} s"), json!({"seconds": seconds}));
    if let Some(adapter) = &ready.adapter {
        let (loras, parameters) = adapter.trainable()?;
        model.attach(loras, parameters)?;
    }
    check_gradients(&model, &ready.inputs.train).context("checking that everything trains")?;
    Ok(model)
}

/// The direction, computed now if there was none.
fn directions(ready: &mut Ready) -> Result<Option<Directions>> {
    let directions = match std::mem::replace(&mut ready.direction, Direction::NotNeeded) {
        Direction::NotNeeded => return Ok(None),
        Direction::Open(directions) => directions,
        Direction::Compute(request) => {
            let (progress, began) = (progress_bar(0, "computing direction"), Instant::now());
            direction::compute(&request, &progress)?;
            progress.finish_and_clear();
            let seconds = began.elapsed().as_secs_f64();
            log::debug(&format!("computed the direction in {seconds:.1} s"), json!({"seconds": seconds}));
            open_direction(&request.out, &ready.targets, &ready.spec, &ready.checkpoint, &mut ready.record)?
        }
    };
    let flat = flat_modules(&directions, &ready.targets);
    if flat > 0 {
        let all = ready.targets.len();
        let text =
            format!("{flat} of {all} targeted modules are equal in both models: there the penalty is plain shrinkage");
        log::info(&text, json!({"equal_modules": flat, "modules": all}));
    }
    Ok(Some(directions))
}

//! `checkpoints/step-N/`: all that a run needs to continue as if it had never stopped.
//!
//! With LoRA the folder is a PEFT adapter, in full tuning a Hugging Face model in f32, plus:
//!
//! - `optimizer.safetensors`: AdamW's moments, `<parameter>.exp_avg` and `.exp_avg_sq`; whatever the defence must
//!   remember, such as Lisa's `<parameter>.anchor` or an average's `<parameter>.ema`;
//! - `state.json`: where the run stands ([`RunState`]), and its settings and inputs ([`Origin`]);
//! - `checksums.json`: BLAKE3 of every other file.
//!
//! A folder gets its name only when it is complete and on the disk. Later damage is detected by the checksums.

use super::origin::Origin;
use super::output::OutputFolder;
use super::trained::{Trained, card};
use crate::adapter;
use crate::checkpoint::{
    Checkpoint, publish, remove_staged, rewrite_into, save_tensors_staged, stage, sync_dir, write_atomic,
};
use crate::config::Settings;
use crate::model::Parameters;
use crate::ops::sum::is_finite;
use crate::report::hash_file;
use crate::train::evaluating::SUITE;
use crate::train::state::RunState;
use anyhow::{Context, Result, ensure};
use candle_core::DType;
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

const VERSION: usize = 1;
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const CHECKSUMS: &str = "checksums.json";
const PREFIX: &str = "step-";

/// What `state.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    version: usize,
    asft_version: String,
    /// AdamW's t, which skipped steps do not increase.
    optimizer_steps: i32,
    state: RunState,
    #[serde(flatten)]
    origin: Origin,
}

/// A checkpoint whose files are verified to be as written.
#[derive(Clone, Debug)]
pub struct Saved {
    pub dir: PathBuf,
    pub state: RunState,
    pub origin: Origin,
    optimizer_steps: i32,
}

impl Saved {
    /// Opens a checkpoint and checks every byte of it, and of the best checkpoint if it depends on that.
    ///
    /// # Errors
    /// Whatever makes it unusable.
    pub fn open(dir: &Path) -> Result<Self> {
        let text = std::fs::read(dir.join(CHECKSUMS)).context("it is incomplete")?;
        let checksums: BTreeMap<String, String> = serde_json::from_slice(&text).context(CHECKSUMS)?;
        for file in [STATE, OPTIMIZER] {
            ensure!(checksums.contains_key(file), "{CHECKSUMS} does not name {file}");
        }
        for (file, expected) in &checksums {
            let found = hash_file(&dir.join(file))?;
            ensure!(found == *expected, "{file} is damaged: its checksum is {found}, expected {expected}");
        }
        let record = read_record(dir)?;
        ensure!(record.version == VERSION, "it has version {}, this asft reads {VERSION}", record.version);
        let Record { state, origin, optimizer_steps, .. } = record;
        Ok(Self { dir: dir.to_path_buf(), state, origin, optimizer_steps })
    }

    fn keeps_best(&self) -> bool {
        self.origin.settings.get("output.save_best").is_some_and(|value| *value == true)
    }

    /// The best checkpoint that this one's run would export.
    pub fn best_dir(&self) -> Option<PathBuf> {
        let best = self.state.best.filter(|best| self.keeps_best() && best.step != self.state.step)?;
        Some(self.dir.with_file_name(format!("{PREFIX}{}", best.step)))
    }

    /// Where a run with these settings and inputs continues.
    pub fn resumed(&self, settings: &Settings, inputs: &BTreeMap<String, String>) -> RunState {
        let mut state = self.state.clone();
        state.totals.resumed_at.push(state.step);
        // What another suite found cannot be compared.
        if self.origin.inputs.get(SUITE) != inputs.get(SUITE) {
            (state.before, state.evaluated_at) = (None, None);
        }
        // A best checkpoint that was not kept cannot be exported.
        if settings.output.save_best && !self.keeps_best() {
            state.best = None;
        }
        state
    }

    /// Restores parameters, defence and optimizer.
    pub fn restore(&self, trained: &mut Trained) -> Result<()> {
        let restoring = || format!("restoring {}", self.dir.display());
        trained.trainer.penalties.set_dual(self.state.dual);
        let file = restore_trained(&self.dir, trained).with_context(restoring)?;
        let trainer = &mut trained.trainer;
        let device = trainer.model.device().clone();
        let read = |name: &str| file.tensor(name, DType::F32, &device);
        trainer.optimizer.restore(self.optimizer_steps, trainer.model.parameters(), read).with_context(restoring)
    }
}

/// Sets what trains, and what the defence remembers, to what the checkpoint in `dir` holds. Returns its optimizer's file.
pub fn restore_trained(dir: &Path, trained: &mut Trained) -> Result<Checkpoint> {
    let (is_lora, trainer) = (trained.adapter.is_some(), &mut trained.trainer);
    restore_parameters(dir, is_lora, trainer.model.parameters())?;
    let file = Checkpoint::open_file(&dir.join(OPTIMIZER))?;
    let device = trainer.model.device().clone();
    trainer.defence.restore(trainer.model.parameters(), &|name| file.tensor(name, DType::F32, &device))?;
    Ok(file)
}

/// Sets `parameters` to what the checkpoint in `dir` holds.
fn restore_parameters(dir: &Path, is_lora: bool, parameters: &Parameters) -> Result<()> {
    let file = if is_lora { Checkpoint::open_file(&dir.join(adapter::WEIGHTS))? } else { Checkpoint::open(dir)? };
    for (name, parameter) in parameters {
        let key = if is_lora { adapter::stored_name(&file, name) } else { name.clone() };
        let value = file.tensor(&key, DType::F32, parameter.device())?;
        let (found, expected) = (value.dims(), parameter.dims());
        ensure!(found == expected, "{name} has shape {found:?} in {}, expected {expected:?}", dir.display());
        parameter.set(&value)?;
    }
    Ok(())
}

/// The checkpoints of a run.
pub struct Checkpoints {
    dir: PathBuf,
    keep_last: usize,
}

impl Checkpoints {
    pub fn new(output: &OutputFolder, settings: &Settings) -> Self {
        Self { dir: output.checkpoints(), keep_last: settings.output.keep_last }
    }

    pub fn path(&self, step: usize) -> PathBuf {
        self.dir.join(format!("{PREFIX}{step}"))
    }

    /// The steps that have folders, ascending.
    fn steps(&self) -> Vec<usize> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let step = |name: std::ffi::OsString| name.to_str()?.strip_prefix(PREFIX)?.parse::<usize>().ok();
        let mut steps: Vec<usize> = entries.filter_map(|entry| step(entry.file_name())).collect();
        steps.sort_unstable();
        steps
    }

    /// The newest usable checkpoint, and what is wrong with each newer one.
    pub fn newest(&self) -> (Option<Saved>, Vec<String>) {
        let mut problems = vec![];
        for step in self.steps().into_iter().rev() {
            let dir = self.path(step);
            let opened = Saved::open(&dir).and_then(|saved| match saved.best_dir() {
                Some(best) => Saved::open(&best).context("of the best checkpoint, which it needs").map(|_| saved),
                None => Ok(saved),
            });
            match opened {
                Ok(saved) => return (Some(saved), problems),
                Err(error) => problems.push(format!("checkpoint {} is not usable: {error:#}", dir.display())),
            }
        }
        (None, problems)
    }

    /// Removes what a killed process left half-written, and renames checkpoints later than `step`, which are unusable,
    /// to `step-N.damaged`, so that they are not counted among those to keep.
    pub fn tidy(&self, step: usize) -> Result<()> {
        remove_staged(&self.dir)?;
        for later in self.steps().into_iter().filter(|&later| later > step) {
            let (dir, aside) = (self.path(later), self.dir.join(format!("{PREFIX}{later}.damaged")));
            let moving = || format!("moving {} aside", dir.display());
            if aside.exists() {
                std::fs::remove_dir_all(&aside).with_context(moving)?;
            }
            std::fs::rename(&dir, &aside).with_context(moving)?;
        }
        Ok(())
    }

    /// Writes the checkpoint of `state`, and removes those that need not be kept.
    pub fn save(&self, settings: &Settings, trained: &Trained, state: &RunState) -> Result<PathBuf> {
        let dir = self.path(state.step);
        let saving = || format!("saving checkpoint {}; those before it are as they were", dir.display());
        self.write(settings, trained, state, &dir).with_context(saving)?;
        self.prune()?;
        Ok(dir)
    }

    fn write(&self, settings: &Settings, trained: &Trained, state: &RunState, dir: &Path) -> Result<()> {
        let trainer = &trained.trainer;
        check_finite(trainer.model.parameters())?;
        let staging = stage(dir)?;
        sync_dir(self.dir.parent().context("checkpoints/ is in the output folder")?)?;
        write_parameters(settings, trained, staging.path())?;
        let mut tensors = trainer.optimizer.moments();
        tensors.extend(trainer.defence.tensors());
        save_tensors_staged(&staging.path().join(OPTIMIZER), &tensors)?;
        let record = Record {
            version: VERSION,
            asft_version: env!("CARGO_PKG_VERSION").to_string(),
            optimizer_steps: trainer.optimizer.steps(),
            state: state.clone(),
            origin: Origin { settings: settings.by_key()?, inputs: trained.inputs.clone() },
        };
        write_json(&staging.path().join(STATE), &record)?;
        let mut checksums = BTreeMap::new();
        for entry in std::fs::read_dir(staging.path())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            checksums.insert(name, hash_file(&path)?);
        }
        write_json(&staging.path().join(CHECKSUMS), &checksums)?;
        publish(staging, dir)
    }

    /// Keeps the newest few, and the best checkpoint that each of them refers to.
    fn prune(&self) -> Result<()> {
        let steps = self.steps();
        let (old, kept) = steps.split_at(steps.len().saturating_sub(self.keep_last));
        let best_of = |&step: &usize| {
            let dir = self.path(step);
            let Record { state, origin, optimizer_steps, .. } = read_record(&dir).ok()?;
            Saved { dir, state, origin, optimizer_steps }.best_dir()
        };
        let best: Vec<PathBuf> = kept.iter().filter_map(best_of).collect();
        for dir in old.iter().map(|&step| self.path(step)).filter(|dir| !best.contains(dir)) {
            let removing = || format!("removing the old checkpoint {}", dir.display());
            // Under a temporary name first: a half-removed checkpoint must not look like a checkpoint.
            let doomed = stage(&dir.with_extension("old")).with_context(removing)?;
            std::fs::rename(&dir, doomed.path()).with_context(removing)?;
            doomed.close().with_context(removing)?;
        }
        Ok(())
    }
}

/// Writes the trained tensors as a folder that other tools can read too.
fn write_parameters(settings: &Settings, trained: &Trained, dir: &Path) -> Result<()> {
    let Some(adapter) = &trained.adapter else {
        let tensor = |name: &str| Ok(trained.tensor(name));
        let hidden = ProgressBar::hidden();
        return rewrite_into(&trained.base.place, &trained.checkpoint, dir, Some(DType::F32), tensor, &hidden);
    };
    let adapter = adapter.with_values(trained.parameters())?;
    let rows = [("state", "a checkpoint of a run that goes on".to_string())];
    let card = card(&adapter, settings.asft.penalize, &rows);
    let identity = trained.identity(&adapter)?;
    adapter::write_into(&adapter, trained.trainer.model.spec(), identity, &card, dir)
}

fn check_finite(parameters: &Parameters) -> Result<()> {
    for (name, parameter) in parameters {
        ensure!(
            is_finite(parameter.as_tensor())?,
            "parameter {name} is not finite; a lower train.learning_rate may help"
        );
    }
    Ok(())
}

fn read_record(dir: &Path) -> Result<Record> {
    let text = std::fs::read(dir.join(STATE)).context(STATE)?;
    serde_json::from_slice(&text).context(STATE)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    write_atomic(path, |file| Ok(file.write_all(text.as_bytes())?))
}

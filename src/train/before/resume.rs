//! Where a run starts: at step 1, or, with `--resume`, after the newest usable checkpoint of an earlier run.

use crate::checkpoint::sync_dir;
use crate::config::Settings;
use crate::console::log;
use crate::error::listing;
use crate::ranks::Ranks;
use crate::report::Metrics;
use crate::train::folder::checkpoint::{Checkpoints, Saved};
use crate::train::folder::origin::{Origin, check_allowed};
use crate::train::folder::output::{Content, OutputFolder, remove};
use crate::train::state::RunState;
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// How a run behaves, apart from its settings.
#[derive(Clone, Debug, Default)]
pub struct RunFlags {
    /// Replace what an earlier run left in the output folder.
    pub overwrite: bool,
    /// Continue that run.
    pub resume: bool,
    /// Settings, and inputs by the settings that name them, that may differ from those of the run to resume.
    pub allow_change: Vec<String>,
}

/// Where a run starts.
pub enum Start {
    /// At step 1.
    Fresh,
    /// After a checkpoint.
    From(Box<Saved>),
}

impl Start {
    pub fn saved(&self) -> Option<&Saved> {
        match self {
            Self::From(saved) => Some(saved),
            Self::Fresh => None,
        }
    }

    /// Restores the output folder to what it was at the checkpoint, or empties it, and opens `metrics.jsonl` and, if
    /// modules are logged, `modules.jsonl`. `state`: that of the run about to continue.
    pub fn open(
        &self,
        settings: &Settings,
        output: &OutputFolder,
        checkpoints: &Checkpoints,
        state: &RunState,
    ) -> Result<(Metrics, Option<Metrics>)> {
        match self {
            Self::From(_) => {
                checkpoints.tidy(state.step)?;
                output.reopen()?;
            }
            Self::Fresh => output.clear()?,
        }
        // The config comes first: it says which run the other files belong to.
        output.write_config(settings)?;
        let open = |path: PathBuf, bytes| match self {
            Self::From(_) => Metrics::resume(&path, bytes),
            Self::Fresh => Metrics::create(&path),
        };
        let mut metrics = open(output.metrics(), state.metrics_bytes)?;
        match settings.logging.tensorboard {
            true => metrics.mirror_to(&output.tensorboard())?,
            false => remove(&output.tensorboard())?,
        }
        let is_logged = settings.output.log_modules_every.is_some();
        let modules = is_logged.then(|| open(output.modules(), state.modules_bytes)).transpose()?;
        sync_dir(output.dir())?;
        if metrics.bytes() < state.metrics_bytes {
            let text = format!("{} lacks rows of steps up to {}", output.metrics().display(), state.step);
            log::warn(&text, Value::Null);
        }
        Ok((metrics, modules))
    }
}

/// Looks at what is in the output folder, without changing anything; all ranks find the same. `None`: the run there is
/// finished.
///
/// # Errors
/// An earlier run and neither `--resume` nor `--overwrite`; a run with settings other than these; a run without a
/// usable checkpoint.
pub fn start(settings: &Settings, flags: &RunFlags, output: &OutputFolder) -> Result<Option<Start>> {
    let ranks = Ranks::here();
    let start = ranks.agree(look(settings, flags, output))?;
    // All ranks have looked before the first changes anything there.
    let step = start.as_ref().map(|start| start.saved().map(|saved| saved.state.step));
    ranks.check_same("the contents of output.dir", format!("{step:?}").as_bytes())?;
    Ok(start)
}

fn look(settings: &Settings, flags: &RunFlags, output: &OutputFolder) -> Result<Option<Start>> {
    check_allowed(&flags.allow_change)?;
    let say = |text: &str| log::info(&format!("{}: {text}", output.dir().display()), Value::Null);
    let content = output.content()?;
    if content == Content::Nothing || !flags.resume {
        output.check_against_inputs(settings, flags.overwrite)?;
    }
    match (content, flags.resume) {
        (Content::Nothing, false) => return Ok(Some(Start::Fresh)),
        (Content::Nothing, true) => {
            say("nothing to resume: starting from the beginning");
            return Ok(Some(Start::Fresh));
        }
        (Content::Run, false) => {
            ensure_valid!(
                flags.overwrite,
                "output.dir {} holds an earlier run; go on with it with --resume, replace it with --overwrite, or \
                 choose another folder (--set output.dir=...)",
                output.dir().display()
            );
            return Ok(Some(Start::Fresh));
        }
        (Content::Run, true) => {}
    }
    let (saved, problems) = Checkpoints::new(output, settings).newest();
    for problem in &problems {
        log::warn(problem, Value::Null);
    }
    let finished = output.record().is_file() && output.result(settings.train.method).is_dir();
    ensure_valid!(
        saved.is_some() || problems.is_empty(),
        "none of the checkpoints in {} is usable: {}; --overwrite starts again from the beginning",
        output.checkpoints().display(),
        listing(&problems, 3)
    );
    let changed = match &saved {
        Some(saved) => saved.origin.check_settings(settings, &flags.allow_change)?,
        None => match config_of(output)? {
            Some(origin) => origin.check_settings(settings, &flags.allow_change)?,
            None => false,
        },
    };
    match saved {
        _ if finished && !changed => Ok(None),
        Some(saved) => {
            say(&format!("resuming after step {} from {}", saved.state.step, saved.dir.display()));
            Ok(Some(Start::From(Box::new(saved))))
        }
        None if finished => Err(invalid!(
            "the run in {} is finished and kept no checkpoint to go on from (output.save_every_steps was not set); \
             --overwrite starts again from the beginning",
            output.dir().display()
        )),
        None => {
            ensure_valid!(
                !output.is_nameless(),
                "output.dir {} holds files of a run but no config.toml, so that it cannot be told whether it is this \
                 one; --overwrite replaces them",
                output.dir().display()
            );
            say("the run stopped before its first checkpoint: starting from the beginning");
            Ok(Some(Start::Fresh))
        }
    }
}

/// The settings of a run without a checkpoint, if it got as far as writing them.
fn config_of(output: &OutputFolder) -> Result<Option<Origin>> {
    let path = output.config();
    if !path.is_file() {
        return Ok(None);
    }
    let settings = Settings::load(&path, &[]).context("reading the settings of the run to resume")?.by_key()?;
    Ok(Some(Origin { settings, inputs: BTreeMap::new() }))
}

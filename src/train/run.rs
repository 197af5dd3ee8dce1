//! A training run from settings to exported result: prepare, then step, report, validate, and save.

use super::prepare::{Prepared, prepare};
use super::{Method, export};
use crate::checkpoint::check_writable;
use crate::config::Settings;
use crate::data::{Batch, collate};
use crate::ensure_valid;
use crate::eval::{MeanLoss, mean_loss};
use crate::report::{EvalRow, Metrics, StepRow, Totals, TrainProgress, peak_memory_bytes};
use anyhow::{Context, Result};
use indicatif::ProgressBar;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What the run's files are called.
const METRICS: &str = "metrics.jsonl";
const CONFIG: &str = "config.toml";
const RECORD: &str = "run.json";
const DIRECTION: &str = "direction.safetensors";

/// How a run behaves beside its settings.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunFlags {
    pub quiet: bool,
    /// Replace what an earlier run left in the output folder.
    pub overwrite: bool,
}

/// What a finished run has to show.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The adapter or model folder.
    pub result: PathBuf,
    pub steps: usize,
    pub first_loss: f64,
    pub last_loss: f64,
    pub last_penalty: f64,
    pub eval: Option<MeanLoss>,
}

/// Trains as the settings say and exports the result to `output.dir`.
pub fn run(settings: &Settings, flags: RunFlags) -> Result<Outcome> {
    let dir = PathBuf::from(&settings.output.dir);
    check_output(&dir, flags.overwrite)?;
    let (dir_existed, direction) = (dir.exists(), direction_path(settings));
    let direction_existed = direction.exists();
    let mut prepared = prepare(settings, flags.quiet).inspect_err(|_| {
        // A run that cannot start leaves nothing behind, the direction that it computed included.
        if !dir_existed {
            let _best_effort = std::fs::remove_dir_all(&dir);
        } else if !direction_existed {
            let _best_effort = std::fs::remove_file(&direction);
        }
    })?;
    clear_output(&dir)?;
    write_config(settings, &dir)?;
    let mut metrics = Metrics::create(&dir.join(METRICS))?;
    let outcome = train(settings, &mut prepared, &mut metrics, flags.quiet)?;
    let result = match settings.train.method {
        Method::Lora => export::adapter(settings, &prepared, &dir.join("adapter"))?,
        Method::Full => export::model(&prepared, &dir.join("model"))?,
    };
    prepared.record.write(&dir.join(RECORD), CONFIG, &outcome.totals)?;
    let Finished { totals, first_loss, last, eval } = outcome;
    let last_loss = last.task_loss + last.penalty;
    Ok(Outcome { result, steps: totals.steps, first_loss, last_loss, last_penalty: last.penalty, eval })
}

struct Finished {
    totals: Totals,
    first_loss: f64,
    last: super::StepOutcome,
    eval: Option<MeanLoss>,
}

/// The loop: one optimizer step after another, each with its row of metrics.
fn train(settings: &Settings, prepared: &mut Prepared, metrics: &mut Metrics, quiet: bool) -> Result<Finished> {
    let total_steps = prepared.plan.total_steps;
    let schedule = settings.train.schedule(total_steps, prepared.plan.steps_per_epoch);
    let mut progress = TrainProgress::new(total_steps, quiet);
    let began = Instant::now();
    let mut totals = Totals::default();
    let (mut first_loss, mut last, mut eval) = (None, None, None);
    for step in 0..total_steps {
        let batches = batches(prepared, step);
        let learning_rate = schedule.learning_rate(step);
        let step_began = Instant::now();
        let outcome = prepared.trainer.step(step, &batches, learning_rate)?;
        totals.steps += 1;
        totals.tokens += outcome.tokens;
        totals.label_tokens += outcome.label_tokens;
        let row = StepRow {
            step: step + 1,
            epoch: (step + 1) as f64 / prepared.plan.steps_per_epoch as f64,
            loss: outcome.task_loss + outcome.penalty,
            task_loss: outcome.task_loss,
            penalty: outcome.penalty,
            grad_norm: outcome.grad_norm,
            learning_rate,
            tokens: outcome.tokens,
            label_tokens: outcome.label_tokens,
            tokens_per_second: outcome.tokens as f64 / step_began.elapsed().as_secs_f64(),
            elapsed_seconds: began.elapsed().as_secs_f64(),
            peak_memory_bytes: peak_memory_bytes(),
        };
        metrics.step(&row)?;
        progress.step(&row);
        first_loss.get_or_insert(row.loss);
        last = Some(outcome);
        let due = settings.output.eval_every_steps.is_some_and(|every| (step + 1) % every == 0);
        if due || step + 1 == total_steps {
            eval = validate(settings, prepared, step + 1, metrics, &progress)?;
        }
    }
    progress.finish();
    let last = last.context("a run has at least one step")?;
    Ok(Finished { totals, first_loss: first_loss.unwrap_or_default(), last, eval })
}

fn batches(prepared: &mut Prepared, step: usize) -> Vec<Batch> {
    let micro_batches = prepared.plan.micro_batches(step);
    let examples = &prepared.train.examples;
    micro_batches.into_iter().map(|samples| collate(samples.into_iter().map(|i| &examples[i]))).collect()
}

fn validate(
    settings: &Settings,
    prepared: &Prepared,
    step: usize,
    metrics: &mut Metrics,
    progress: &TrainProgress,
) -> Result<Option<MeanLoss>> {
    let Some(validation) = &prepared.validation else { return Ok(None) };
    let model = &prepared.trainer.model;
    let hidden = ProgressBar::hidden();
    let mean = mean_loss(model, &validation.examples, settings.train.batch_size, &hidden)?;
    let row = EvalRow { step, eval_loss: mean.loss, eval_tokens: mean.label_tokens };
    metrics.eval(&row)?;
    progress.eval(&row);
    Ok(Some(mean))
}

/// Refuses a folder that holds something, unless it is an earlier run that may go.
fn check_output(dir: &Path, overwrite: bool) -> Result<()> {
    check_writable(dir).context("output.dir")?;
    let empty = match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(_) => true,
    };
    if empty {
        return Ok(());
    }
    let is_run = dir.join(CONFIG).is_file() || dir.join(METRICS).is_file();
    ensure_valid!(is_run, "output.dir {} is not empty, and not an earlier run; choose another folder", dir.display());
    ensure_valid!(
        overwrite,
        "output.dir {} holds an earlier run; choose another folder (--set output.dir=...) or replace it with \
         --overwrite",
        dir.display()
    );
    Ok(())
}

/// Removes the files of an earlier run, and only those. The direction stays: it was computed or checked just now.
fn clear_output(dir: &Path) -> Result<()> {
    for name in [METRICS, CONFIG, RECORD] {
        let path = dir.join(name);
        if path.is_file() {
            std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    for name in ["adapter", "model"] {
        let path = dir.join(name);
        if path.is_dir() {
            std::fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

fn write_config(settings: &Settings, dir: &Path) -> Result<()> {
    let text = settings.to_toml()?;
    crate::checkpoint::write_atomic(&dir.join(CONFIG), |file| Ok(std::io::Write::write_all(file, text.as_bytes())?))
}

/// Where a run keeps the direction that it computes.
pub fn direction_path(settings: &Settings) -> PathBuf {
    Path::new(&settings.output.dir).join(DIRECTION)
}

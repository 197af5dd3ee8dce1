//! A training run from settings to exported result: find where to start, prepare, then step, validate, keep, and
//! export.

use super::before::prepare::{Prepared, prepare};
use super::before::resume::{Start, start};
use super::folder::checkpoint::{Checkpoints, restore_parameters};
use super::folder::export;
use super::folder::output::{OutputFolder, remove};
use super::options::Tuning;
use super::plan::StepSamples;
use super::state::{Losses, RunState};
use super::step::parallel::{check_same_parameters, connect, warn_of_idle_ranks};
use super::step::trainer::{NotFinite, StepOutcome};
use crate::config::Settings;
use crate::console::log;
use crate::error::listing;
use crate::eval::{MeanLoss, mean_loss};
use crate::memory;
use crate::optim::Schedule;
use crate::ranks::Ranks;
use crate::report::{EvalRow, Metrics, SkippedRow, State, StepRow, TrainProgress};
use crate::stop::{Signal, StopRequest};
use anyhow::{Context, Result, anyhow};
use indicatif::ProgressBar;
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

/// How a run behaves beside its settings.
#[derive(Clone, Debug, Default)]
pub struct RunFlags {
    /// Replace what an earlier run left in the output folder.
    pub overwrite: bool,
    /// Go on with that run.
    pub resume: bool,
    /// Settings, and inputs by the settings that name them, that may differ from those of the run to resume.
    pub allow_change: Vec<String>,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub enum Ending {
    Finished(Outcome),
    /// There was nothing left to do: the run to resume had its result already.
    AlreadyFinished(PathBuf),
    /// A signal came; `checkpoint` is where the run can go on.
    Stopped {
        signal: Signal,
        step: usize,
        checkpoint: PathBuf,
    },
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
    /// The last validation.
    pub eval: Option<MeanLoss>,
    /// The step whose state was exported, where that is not the last.
    pub best_step: Option<usize>,
}

/// Trains as the settings say and exports the result to `output.dir`.
pub fn run(settings: &Settings, flags: &RunFlags) -> Result<Ending> {
    let (ranks, output) = (Ranks::here(), OutputFolder::new(settings));
    let start = ranks.agree(start(settings, flags, &output))?;
    // All have looked before the first changes anything there.
    let step = start.as_ref().map(|start| start.saved().map(|saved| saved.state.step));
    ranks.check_same("the contents of output.dir", format!("{step:?}").as_bytes())?;
    let already_finished = || Ok(Ending::AlreadyFinished(output.result(settings.train.method)));
    let Some(start) = start else { return already_finished() };
    let lock = ranks.on_first(|| output.lock_existing())?.flatten();
    let prepared = ranks.agree(prepare(settings, &output, &start, &flags.allow_change));
    let mut prepared = prepared.inspect_err(|_| {
        if ranks.is_first() {
            output.undo()
        }
    })?;
    let is_over = |state| output.record().is_file() && is_done(settings, prepared.train.plan.total_steps, state);
    let is_over = start.saved().is_some_and(|saved| is_over(&saved.state));
    let _lock = ranks.on_first(|| lock.map_or_else(|| output.lock(), Ok))?;
    if is_over {
        return already_finished();
    }
    // Not agreed on: where GPUs cannot be connected for one rank, the others wait for it until it ends the job.
    prepared.trainer.all_reduce = connect(prepared.trainer.model.device())?;
    check_same_parameters(prepared.trainer.model.parameters())?;
    warn_of_idle_ranks(settings);
    let mut run = ranks.agree(Run::begin(settings, &output, start, prepared))?;
    match run.train()? {
        Some(signal) => Ok(Ending::Stopped { signal, step: run.state.step, checkpoint: run.keep()? }),
        None => run.finish(&output).map(Ending::Finished),
    }
}

/// All steps done, or no gain for too long.
fn is_done(settings: &Settings, total_steps: usize, state: &RunState) -> bool {
    state.step >= total_steps || settings.train.patience.is_some_and(|limit| state.evals_since_best >= limit)
}

struct Run<'a> {
    settings: &'a Settings,
    prepared: Prepared,
    schedule: Schedule,
    state: RunState,
    /// As it was after the last step that was not skipped; parameters and optimizer are still the same.
    good: RunState,
    checkpoints: Checkpoints,
    /// The step of the newest checkpoint.
    kept: Option<usize>,
    /// The first rank's.
    metrics: Option<Metrics>,
    /// The first rank's, if modules are logged.
    modules: Option<Metrics>,
    progress: TrainProgress,
    /// Training seconds and all seconds of earlier processes.
    earlier: (f64, f64),
    began: Instant,
}

impl<'a> Run<'a> {
    fn begin(settings: &'a Settings, output: &OutputFolder, start: Start, prepared: Prepared) -> Result<Self> {
        let checkpoints = Checkpoints::new(output, settings);
        let kept = start.saved().map(|saved| saved.state.step);
        let state = start.saved().map_or_else(RunState::default, |saved| saved.resumed(settings));
        let (metrics, modules) = match Ranks::here().is_first() {
            true => {
                start.open(settings, output, &checkpoints, &state).map(|(metrics, modules)| (Some(metrics), modules))?
            }
            false => (None, None),
        };
        let (total, per_epoch) = (prepared.train.plan.total_steps, prepared.train.plan.steps_per_epoch);
        let progress = TrainProgress::new(total, state.step);
        Ok(Self {
            settings,
            schedule: settings.train.schedule(total, per_epoch),
            good: state.clone(),
            checkpoints,
            kept,
            metrics,
            modules,
            progress,
            earlier: (state.training_seconds, state.totals.elapsed_seconds),
            began: Instant::now(),
            prepared,
            state,
        })
    }

    /// The loop: one optimizer step after another, each with its row of metrics. Returns the signal that ended it.
    fn train(&mut self) -> Result<Option<Signal>> {
        let stop = StopRequest::listen()?;
        while !self.is_done() {
            self.step()?;
            let is_best = self.is_validation_due() && self.validate()?;
            self.take_stock();
            if self.state.bad_steps >= self.settings.train.max_bad_steps {
                return self.give_up();
            }
            if self.is_checkpoint_due(is_best) {
                self.keep()?;
            }
            if let Some(signal) = stop.received_by_any().filter(|_| !self.is_done()) {
                return Ok(Some(signal));
            }
        }
        Ok(None)
    }

    fn is_done(&self) -> bool {
        is_done(self.settings, self.prepared.train.plan.total_steps, &self.state)
    }

    fn is_validation_due(&self) -> bool {
        let due = self.settings.output.eval_every_steps.is_some_and(|every| self.state.step.is_multiple_of(every));
        self.prepared.validation.is_some() && (due || self.state.step == self.prepared.train.plan.total_steps)
    }

    fn is_checkpoint_due(&self, is_best: bool) -> bool {
        let output = &self.settings.output;
        let regular = output.save_every_steps;
        let due = regular.is_some_and(|every| self.state.step.is_multiple_of(every) || self.is_done());
        // Within a series of bad steps the state before them is the one to keep.
        (is_best && output.save_best) || (due && self.state.bad_steps == 0)
    }

    fn step(&mut self) -> Result<()> {
        let (step, began) = (self.state.step, Instant::now());
        let samples = self.prepared.trainer.defence.samples(step, &mut self.prepared.train)?;
        let learning_rate = self.schedule.learning_rate(step);
        self.state.step += 1;
        match self.prepared.trainer.step(step, &samples.batches(), learning_rate) {
            Ok(outcome) => self.report(&outcome, samples.state, learning_rate, began),
            Err(error) => match error.downcast_ref::<NotFinite>() {
                Some(not_finite) => self.report_skipped(*not_finite, &samples),
                None => Err(error.context(format!("step {}", step + 1))),
            },
        }
    }

    fn report(
        &mut self,
        outcome: &StepOutcome,
        state: Option<State>,
        learning_rate: f64,
        began: Instant,
    ) -> Result<()> {
        let standing = &mut self.state;
        let row = StepRow {
            step: standing.step,
            epoch: standing.step as f64 / self.prepared.train.plan.steps_per_epoch as f64,
            state,
            loss: outcome.task_loss + outcome.penalty + outcome.proximal.unwrap_or(0.0),
            task_loss: outcome.task_loss,
            penalty: outcome.penalty,
            lambda: outcome.bounded.map(|bounded| bounded.lambda),
            penalised_share: outcome.bounded.map(|bounded| bounded.share),
            proximal: outcome.proximal,
            grad_norm: outcome.grad_norm,
            learning_rate,
            tokens: outcome.tokens,
            label_tokens: outcome.label_tokens,
            tokens_per_second: outcome.tokens as f64 / began.elapsed().as_secs_f64(),
            elapsed_seconds: self.earlier.0 + self.began.elapsed().as_secs_f64(),
            peak_memory_bytes: memory::peak_bytes(),
        };
        standing.totals.steps += 1;
        standing.totals.tokens += outcome.tokens;
        standing.totals.label_tokens += outcome.label_tokens;
        let losses = Losses { loss: row.loss, penalty: row.penalty };
        standing.first.get_or_insert(losses);
        (standing.last, standing.bad_steps) = (Some(losses), 0);
        self.metrics.iter_mut().try_for_each(|metrics| metrics.step(&row))?;
        self.progress.step(&row);
        if let Some(modules) = &mut self.modules {
            self.prepared.trainer.modules.iter().try_for_each(|row| modules.module(row))?;
        }
        Ok(())
    }

    fn report_skipped(&mut self, reason: NotFinite, samples: &StepSamples) -> Result<()> {
        self.state.totals.skipped_steps += 1;
        self.state.bad_steps += 1;
        let places = samples.origins(reason.micro_batch);
        let row = SkippedRow { step: self.state.step, skipped: reason.to_string(), samples: places };
        let text = format!("step {} skipped: {}; samples {}", row.step, row.skipped, listing(&row.samples, 8));
        log::warn(&text, serde_json::to_value(&row)?);
        self.metrics.iter_mut().try_for_each(|metrics| metrics.skipped(&row))
    }

    /// Computes the validation loss; whether it is the lowest so far.
    fn validate(&mut self) -> Result<bool> {
        let Some(validation) = &self.prepared.validation else { return Ok(false) };
        let model = &self.prepared.trainer.model;
        let batch_size = self.settings.train.batch_size;
        let mean = mean_loss(model, &validation.examples, batch_size, &ProgressBar::hidden())?;
        let row = EvalRow { step: self.state.step, eval_loss: mean.loss, eval_tokens: mean.label_tokens };
        self.metrics.iter_mut().try_for_each(|metrics| metrics.eval(&row))?;
        self.progress.eval(&row);
        Ok(self.state.validated(mean.loss, mean.label_tokens))
    }

    /// Brings the state up to date with the clocks and the metrics.
    fn take_stock(&mut self) {
        self.state.training_seconds = self.earlier.0 + self.began.elapsed().as_secs_f64();
        self.state.totals.elapsed_seconds = self.earlier.1 + self.prepared.record.elapsed_seconds();
        if let Some(metrics) = &self.metrics {
            self.state.metrics_bytes = metrics.bytes();
        }
        if let Some(modules) = &self.modules {
            self.state.modules_bytes = modules.bytes();
        }
        self.state.dual = self.prepared.trainer.penalties.dual();
        if self.state.bad_steps == 0 {
            self.good = self.state.clone();
        }
    }

    /// Writes a checkpoint of the current state, unless it has one.
    fn keep(&mut self) -> Result<PathBuf> {
        let dir = self.checkpoints.path(self.state.step);
        if self.kept == Some(self.state.step) {
            return Ok(dir);
        }
        check_same_parameters(self.prepared.trainer.model.parameters())?;
        Ranks::here().on_first(|| {
            self.metrics.iter().chain(&self.modules).try_for_each(Metrics::sync)?;
            self.checkpoints.save(self.settings, &self.prepared, &self.state)
        })?;
        self.kept = Some(self.state.step);
        log::debug(&format!("kept {}", dir.display()), json!({"step": self.state.step, "checkpoint": dir}));
        Ok(dir)
    }

    /// Ends a run whose steps no longer come to anything, at the state before them.
    fn give_up(&mut self) -> Result<Option<Signal>> {
        let (bad, ranks) = (self.state.bad_steps, Ranks::here());
        if self.good.step == 0 {
            return ranks.agree(Err(anyhow!(
                "none of the first {bad} steps had a finite loss and gradient; a lower train.learning_rate may help"
            )));
        }
        self.state = self.good.clone();
        let dir = self.keep()?;
        ranks.agree(Err(anyhow!(
            "{bad} steps in a row without a finite loss and gradient; the state before them is {}; look at their samples \
             in metrics.jsonl, or resume with a lower rate (--resume --set train.learning_rate=... --allow-change \
             train.learning_rate)",
            dir.display()
        )))
    }

    /// Writes the result, of the last state or of the checkpoint after step `best`, and `run.json`.
    fn export(&mut self, output: &OutputFolder, best: Option<usize>) -> Result<()> {
        let method = self.settings.train.method;
        if let Some(best) = best {
            let parameters = self.prepared.trainer.model.parameters();
            restore_parameters(&self.checkpoints.path(best), method == Tuning::Lora, parameters)
                .context("loading the best checkpoint")?;
        }
        let result = output.result(method);
        remove(&result)?;
        match method {
            Tuning::Lora => export::adapter(self.settings, &self.prepared, best.unwrap_or(self.state.step), &result)?,
            Tuning::Full => export::model(&self.prepared, &result)?,
        };
        self.state.totals.elapsed_seconds = self.earlier.1 + self.prepared.record.elapsed_seconds();
        let trainer = &self.prepared.trainer;
        let updates = trainer.penalties.update_norms(self.settings.asft.scaled, trainer.model.parameters())?;
        output.write_record(&self.prepared.record, &self.state.totals, &updates)
    }

    /// Ends the run with its result.
    fn finish(mut self, output: &OutputFolder) -> Result<Outcome> {
        let RunState { first, last, eval, best, .. } = self.state;
        let ranks = Ranks::here();
        let (Some(first), Some(last)) = (first, last) else {
            return ranks.agree(Err(anyhow!("no step had a finite loss and gradient")));
        };
        check_same_parameters(self.prepared.trainer.model.parameters())?;
        let best = best.filter(|best| self.settings.output.save_best && best.step != self.state.step);
        ranks.on_first(|| self.export(output, best.map(|best| best.step)))?;
        self.progress.finish();
        Ok(Outcome {
            result: output.result(self.settings.train.method),
            steps: self.state.totals.steps,
            first_loss: first.loss,
            last_loss: last.loss,
            last_penalty: last.penalty,
            eval: eval.map(|eval| MeanLoss { loss: eval.loss, label_tokens: eval.label_tokens }),
            best_step: best.map(|best| best.step),
        })
    }
}

//! A training run from settings to exported result: find where to start, prepare, then step, validate, keep, and
//! export. With several ranks, each of these agrees on its outcome itself.

use super::before::memory::MemoryPlan;
use super::before::prepare::{Prepared, prepare};
use super::before::resume::{RunFlags, Start, start};
use super::evaluating::{AT_THE_END, BETWEEN, Measured, measure};
use super::folder::checkpoint::Checkpoints;
use super::folder::export;
use super::folder::output::OutputFolder;
use super::folder::trained::Trained;
use super::ledger::Ledger;
use super::plan::Pool;
use super::state::RunState;
use super::step::parallel::{check_same_parameters, join, take_from_first};
use super::step::trainer::NotFinite;
use crate::config::Settings;
use crate::console::log;
use crate::data::Dataset;
use crate::device;
use crate::eval::{MeanLoss, Prepared as Suite, mean_loss};
use crate::model::Decoder;
use crate::optim::Schedule;
use crate::ranks::Ranks;
use crate::report::{LossEnds, SuiteEnds};
use crate::stop::{self, Part, Place, Signal, StopRequest};
use anyhow::{Result, anyhow};
use candle_core::Device;
use indicatif::ProgressBar;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What a signal waits for.
const STEP: Place = Place::After { what: "this step", otherwise: "without a checkpoint" };
const VALIDATION: Place = Place::After { what: "this validation", otherwise: "without a checkpoint" };
const RESULT: Place = Place::After { what: "writing the result", otherwise: "without the result" };

/// How a run ended.
#[derive(Clone, Debug)]
pub enum Ending {
    Finished(Outcome),
    /// There was nothing left to do: the run to resume already had its result.
    AlreadyFinished(PathBuf),
    /// A signal came; `checkpoint` is where the run can be resumed.
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
    /// Means over several steps.
    pub loss: LossEnds,
    pub last_penalty: f64,
    /// The last validation.
    pub eval: Option<MeanLoss>,
    /// What the suite found at both ends.
    pub suite: Option<SuiteEnds>,
    /// The step whose state was exported, if not the last.
    pub best_step: Option<usize>,
    /// The signal that came when there was nothing left to do but the last evaluation.
    pub signal: Option<Signal>,
}

/// Trains as the settings say and exports the result to `output.dir`.
pub fn run(settings: &Settings, flags: &RunFlags) -> Result<Ending> {
    let _part = Part::begin();
    StopRequest::listen(log::notice)?;
    let output = OutputFolder::new(settings);
    let already_finished = || Ok(Ending::AlreadyFinished(output.result(settings.train.method)));
    let Some(start) = start(settings, flags, &output)? else { return already_finished() };
    // Until the first step, a signal ends the process at once: nothing has been done that would be lost.
    stop::at(Place::Anywhere);
    stop::leaves(&start.saved().map_or("no step was done".to_string(), |saved| newest(&saved.dir)));
    let held = output.lock_existing()?;
    let prepared = prepare(settings, &output, &start, &flags.allow_change)?;
    let _lock = output.lock(held)?;
    let is_over = |state| output.record().is_file() && is_done(settings, prepared.train.plan.total_steps, state);
    if start.saved().is_some_and(|saved| is_over(&saved.state)) {
        return already_finished();
    }
    let mut run = Run::begin(settings, &output, &start, prepared)?;
    match run.train()? {
        Some(signal) => Ok(Ending::Stopped { signal, step: run.ledger.state().step, checkpoint: run.keep()? }),
        None => run.finish().map(Ending::Finished),
    }
}

/// Whether all steps are done, or there was no gain for too long.
fn is_done(settings: &Settings, total_steps: usize, state: &RunState) -> bool {
    state.step >= total_steps || settings.train.patience.is_some_and(|limit| state.evals_since_best >= limit)
}

/// What a sudden end leaves.
fn newest(checkpoint: &Path) -> String {
    format!("the last checkpoint is {}", checkpoint.display())
}

/// What a device has free, if it says.
fn free_memory(device: &Device) -> Option<usize> {
    device::memory(device).map(|memory| memory.available)
}

struct Run<'a> {
    settings: &'a Settings,
    output: &'a OutputFolder,
    trained: Trained,
    train: Pool,
    validation: Option<Dataset>,
    suite: Option<Suite>,
    schedule: Schedule,
    checkpoints: Checkpoints,
    /// The step of the newest checkpoint.
    kept: Option<usize>,
    ledger: Ledger,
    memory: MemoryPlan,
}

impl<'a> Run<'a> {
    fn begin(settings: &'a Settings, output: &'a OutputFolder, start: &Start, prepared: Prepared) -> Result<Self> {
        let Prepared { mut trained, train, validation, suite, record, mut memory } = prepared;
        let device = trained.trainer.model.device();
        trained.trainer.all_reduce = join(settings, device, trained.parameters())?;
        memory.all_is_loaded(free_memory(trained.trainer.model.device()));
        Ok(Self {
            settings,
            output,
            schedule: settings.train.schedule(train.plan.total_steps, train.plan.steps_per_epoch),
            checkpoints: Checkpoints::new(output, settings),
            kept: start.saved().map(|saved| saved.state.step),
            ledger: Ledger::open(settings, output, start, &train.plan, &trained.inputs, record)?,
            trained,
            train,
            validation,
            suite,
            memory,
        })
    }

    /// The loop: one optimizer step after another, each with its row of metrics. Returns the signal that ended it.
    fn train(&mut self) -> Result<Option<Signal>> {
        let stop = StopRequest::listen(log::notice)?;
        self.evaluate()?;
        stop::at(STEP);
        if self.kept.is_none() {
            stop::leaves("there is none yet");
        }
        while !self.is_done() {
            if let Some(signal) = self.evaluate()? {
                return Ok(Some(signal));
            }
            self.step()?;
            let is_best = self.is_validation_due() && self.validate()?;
            self.ledger.take_stock(&self.trained.trainer);
            if self.ledger.state().bad_steps >= self.settings.train.max_bad_steps {
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

    fn step(&mut self) -> Result<()> {
        let (step, began) = (self.ledger.state().step, Instant::now());
        let trainer = &mut self.trained.trainer;
        let samples = trainer.defence.samples(step, &mut self.train)?;
        let learning_rate = self.schedule.learning_rate(step);
        let updates = trainer.optimizer.steps();
        match trainer.step(step, &samples.batches()?, learning_rate) {
            Ok(outcome) => self.ledger.taken(&outcome, samples.state, learning_rate, began, trainer),
            Err(error) => match error.downcast_ref::<NotFinite>() {
                Some(reason) => self.ledger.skipped(*reason, &samples),
                None => {
                    let untouched = trainer.optimizer.steps() == updates;
                    Err(self.explained(error, untouched).context(format!("step {}", step + 1)))
                }
            },
        }
    }

    /// The error of a step; if the device's memory ran out, with what to do, and the state before the step kept unless
    /// parameters have moved since or other ranks would have to take part.
    fn explained(&mut self, error: anyhow::Error, untouched: bool) -> anyhow::Error {
        let Some(plan) = self.memory.exhausted(&error, free_memory(self.trained.trainer.model.device())) else {
            return error;
        };
        let kept = if untouched && !Ranks::here().are_many() && self.ledger.go_back() {
            match self.keep() {
                Ok(dir) => format!(
                    "the state before it is kept in {}: go on with --resume, and --allow-change for what you change",
                    dir.display()
                ),
                Err(error) => format!("the state before it could not be kept: {error:#}"),
            }
        } else {
            "no state was kept".to_string()
        };
        error.context(format!("{plan}; {kept}"))
    }

    fn is_done(&self) -> bool {
        is_done(self.settings, self.train.plan.total_steps, self.ledger.state())
    }

    fn is_validation_due(&self) -> bool {
        let step = self.ledger.state().step;
        let due = self.settings.output.eval_every_steps.is_some_and(|every| step.is_multiple_of(every));
        self.validation.is_some() && (due || step == self.train.plan.total_steps)
    }

    fn is_checkpoint_due(&self, is_best: bool) -> bool {
        let (output, state) = (&self.settings.output, self.ledger.state());
        let regular = output.save_every_steps;
        let due = regular.is_some_and(|every| state.step.is_multiple_of(every) || self.is_done());
        // Within a series of bad steps, the state before them is the one to keep.
        (is_best && output.save_best) || (due && state.bad_steps == 0)
    }

    /// Measures the suite before the first step, and where `eval.every` wants it. Where a step was just taken, the
    /// checkpoint comes first: whoever resumes from it measures again. Returns the signal that interrupted it.
    fn evaluate(&mut self) -> Result<Option<Signal>> {
        let (step, options) = (self.ledger.state().step, &self.settings.eval);
        let due = step == 0 || options.every.is_some_and(|every| step.is_multiple_of(every));
        let Some(suite) = self.suite.as_mut().filter(|_| due && self.ledger.state().evaluated_at != Some(step)) else {
            return Ok(None);
        };
        // As long as there is nothing to lose, a signal ends the process at once.
        if step > 0 {
            stop::at(BETWEEN);
        }
        let of = |model: &Decoder| measure(suite, model, options.batch_size, step);
        let measured = self.trained.trainer.as_result(of)?;
        if step > 0 {
            stop::at(STEP);
        }
        match measured {
            Ok(Measured::Whole(row)) => self.ledger.evaluated(row).map(|()| None),
            Ok(Measured::Interrupted(signal)) => Ok(Some(signal)),
            Err(error) if step == 0 => Err(error.context("before the first step")),
            Err(error) => {
                warn_of_failure(step, &error);
                Ok(None)
            }
        }
    }

    /// Measures the suite on what was exported, the state after `step`. The result is safe by now: it stays whatever
    /// comes of this.
    fn evaluate_result(&mut self, step: usize) -> (Option<SuiteEnds>, Option<Signal>) {
        let Some((suite, file)) = self.suite.as_mut().zip(self.settings.eval.suite.clone()) else {
            return (None, None);
        };
        stop::at(AT_THE_END);
        let measured = measure(suite, &self.trained.trainer.model, self.settings.eval.batch_size, step);
        stop::at(RESULT);
        let (after, signal) = match measured {
            Ok(Measured::Whole(row)) => (Some(row), None),
            Ok(Measured::Interrupted(signal)) => (None, Some(signal)),
            Err(error) => {
                warn_of_failure(step, &error);
                (None, None)
            }
        };
        (Some(SuiteEnds { suite: file, before: self.ledger.state().before.clone(), after }), signal)
    }

    /// Computes the validation loss; returns whether it is the lowest so far.
    fn validate(&mut self) -> Result<bool> {
        let Some(validation) = &self.validation else { return Ok(false) };
        let batch_size = self.settings.train.batch_size;
        stop::at(VALIDATION);
        let of = |model: &Decoder| mean_loss(model, validation, batch_size, &ProgressBar::hidden());
        let mean = self.trained.trainer.as_result(of)??;
        stop::at(STEP);
        self.ledger.validated(&mean)
    }

    /// Writes a checkpoint of the current state, unless there is one.
    fn keep(&mut self) -> Result<PathBuf> {
        let state = self.ledger.state();
        let (step, dir) = (state.step, self.checkpoints.path(state.step));
        if self.kept == Some(step) {
            return Ok(dir);
        }
        check_same_parameters(self.trained.parameters())?;
        Ranks::here().on_first(|| {
            self.ledger.sync()?;
            self.checkpoints.save(self.settings, &self.trained, state)
        })?;
        self.kept = Some(step);
        stop::leaves(&newest(&dir));
        log::debug(&format!("kept {}", dir.display()), json!({"step": step, "checkpoint": dir}));
        Ok(dir)
    }

    /// Ends a run whose steps keep failing, at the state before them.
    fn give_up(&mut self) -> Result<Option<Signal>> {
        let (bad, ranks) = (self.ledger.state().bad_steps, Ranks::here());
        if !self.ledger.go_back() {
            return ranks.agree(Err(anyhow!(
                "none of the first {bad} steps had a finite loss and gradient; a lower train.learning_rate may help"
            )));
        }
        let dir = self.keep()?;
        ranks.agree(Err(anyhow!(
            "{bad} steps in a row without a finite loss and gradient; the state before them is {}; look at their samples \
             in metrics.jsonl, or resume with a lower rate (--resume --set train.learning_rate=... --allow-change \
             train.learning_rate)",
            dir.display()
        )))
    }

    /// Ends the run with its result.
    fn finish(mut self) -> Result<Outcome> {
        let RunState { step, last, eval, best, .. } = *self.ledger.state();
        let ranks = Ranks::here();
        let (Some(loss), Some(last)) = (self.ledger.state().loss(), last) else {
            return ranks.agree(Err(anyhow!("no step had a finite loss and gradient")));
        };
        stop::at(RESULT);
        // From here on it stays what is exported.
        self.trained.trainer.exchange()?;
        check_same_parameters(self.trained.parameters())?;
        let best_step = best.map(|best| best.step).filter(|best| self.settings.output.save_best && *best != step);
        if let Some(best) = best_step {
            ranks.on_first(|| export::go_back(self.settings, &mut self.trained, self.output, best))?;
            take_from_first(self.trained.parameters())?;
        }
        let exported = best_step.unwrap_or(step);
        ranks.on_first(|| export::result(self.settings, &self.trained, self.output, exported))?;
        let (suite, signal) = self.evaluate_result(exported);
        // Rows of the metrics are in the order of the steps.
        if let Some(row) = suite.as_ref().and_then(|ends| ends.after.clone()).filter(|row| row.step == step) {
            self.ledger.evaluated(row)?;
        }
        ranks.on_first(|| {
            let Trained { trainer, directions, .. } = &self.trained;
            let (scaled, parameters) = (self.settings.asft.scaled, trainer.model.parameters());
            let updates = trainer.penalties.update_norms(scaled, parameters, directions.as_ref())?;
            self.ledger.write_record(self.output, suite.clone(), updates)
        })?;
        Ok(Outcome {
            result: self.output.result(self.settings.train.method),
            steps: self.ledger.close().steps,
            loss,
            last_penalty: last.penalty,
            eval: eval.map(|eval| MeanLoss { loss: eval.loss, label_tokens: eval.label_tokens }),
            suite,
            best_step,
            signal,
        })
    }
}

/// Says that an evaluation failed, for which no run is given up.
fn warn_of_failure(step: usize, error: &anyhow::Error) {
    let text = format!("the evaluation after step {step} failed, and is left out: {error:#}");
    log::warn(&text, json!({"step": step, "error": format!("{error:#}")}));
}

#[cfg(test)]
mod tests;

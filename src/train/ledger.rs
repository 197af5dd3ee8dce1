//! The books of a run: where it stands, the outcome of each step, how long it took, and the files and log lines that
//! report it.

use super::before::resume::Start;
use super::folder::checkpoint::Checkpoints;
use super::folder::output::OutputFolder;
use super::plan::{Plan, StepSamples};
use super::state::{Losses, RunState};
use super::step::trainer::{NotFinite, StepOutcome, Trainer};
use crate::config::Settings;
use crate::console::log;
use crate::error::listing;
use crate::eval::MeanLoss;
use crate::memory;
use crate::ranks::Ranks;
use crate::report::{
    EvalRow, Metrics, Results, RunRecord, SkippedRow, State, StepRow, SuiteEnds, SuiteRow, Totals, TrainProgress,
    UpdateNorm,
};
use anyhow::Result;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Instant;

pub struct Ledger {
    state: RunState,
    /// The state after the last step that was not skipped; parameters and optimizer have not changed since.
    good: RunState,
    /// On the first rank only.
    metrics: Option<Metrics>,
    /// On the first rank only, if modules are logged.
    modules: Option<Metrics>,
    progress: TrainProgress,
    record: RunRecord,
    steps_per_epoch: usize,
    /// Training seconds and all seconds of earlier processes.
    earlier: (f64, f64),
    began: Instant,
}

impl Ledger {
    /// Opens the books at the step that `start` names. The first rank restores the output folder to what it was then,
    /// for all ranks. `inputs`: content hashes by key; `record`: as far as the preparation has filled it.
    pub fn open(
        settings: &Settings,
        output: &OutputFolder,
        start: &Start,
        plan: &Plan,
        inputs: &BTreeMap<String, String>,
        record: RunRecord,
    ) -> Result<Self> {
        let state = start.saved().map_or_else(RunState::default, |saved| saved.resumed(settings, inputs));
        let checkpoints = Checkpoints::new(output, settings);
        let files = Ranks::here().on_first(|| start.open(settings, output, &checkpoints, &state))?;
        let (metrics, modules) = files.map_or((None, None), |(metrics, modules)| (Some(metrics), modules));
        Ok(Self {
            good: state.clone(),
            metrics,
            modules,
            progress: TrainProgress::new(plan.total_steps, state.step),
            record,
            steps_per_epoch: plan.steps_per_epoch,
            earlier: (state.training_seconds, state.totals.elapsed_seconds),
            began: Instant::now(),
            state,
        })
    }

    pub fn state(&self) -> &RunState {
        &self.state
    }

    /// Records a step that was taken. `began`: when it began.
    pub fn taken(
        &mut self,
        outcome: &StepOutcome,
        kind: Option<State>,
        learning_rate: f64,
        began: Instant,
        trainer: &Trainer,
    ) -> Result<()> {
        self.state.step += 1;
        let row = StepRow {
            step: self.state.step,
            epoch: self.state.step as f64 / self.steps_per_epoch as f64,
            state: kind,
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
            elapsed_seconds: self.training_seconds(),
            peak_memory_bytes: memory::peak_bytes(),
        };
        let state = &mut self.state;
        state.totals.steps += 1;
        state.totals.tokens += outcome.tokens;
        state.totals.label_tokens += outcome.label_tokens;
        let losses = Losses { loss: row.loss, penalty: row.penalty };
        state.first.get_or_insert(losses);
        if let Some((start, now)) = state.trend.step(row.loss) {
            let text = format!(
                "step {}: the loss has been far above its start for some time ({now:.4}, from {start:.4}); a lower \
                 train.learning_rate may help, or a lower asft.lambda if it is the penalty (now {:.4})",
                row.step, row.penalty
            );
            log::warn(&text, json!({"step": row.step, "start": start, "loss": now, "penalty": row.penalty}));
        }
        (state.last, state.bad_steps) = (Some(losses), 0);
        self.metrics.iter_mut().try_for_each(|metrics| metrics.step(&row))?;
        self.progress.step(&row);
        self.modules.iter_mut().try_for_each(|file| trainer.modules.iter().try_for_each(|row| file.module(row)))
    }

    /// Records a step that was not taken.
    pub fn skipped(&mut self, reason: NotFinite, samples: &StepSamples) -> Result<()> {
        self.state.step += 1;
        self.state.totals.skipped_steps += 1;
        self.state.bad_steps += 1;
        let samples = samples.origins(reason.micro_batch);
        let row = SkippedRow { step: self.state.step, skipped: reason.to_string(), samples };
        let text = format!("step {} skipped: {}; samples {}", row.step, row.skipped, listing(&row.samples, 8));
        log::warn(&text, serde_json::to_value(&row)?);
        self.metrics.iter_mut().try_for_each(|metrics| metrics.skipped(&row))
    }

    /// Records a validation; returns whether its loss is the lowest so far.
    pub fn validated(&mut self, mean: &MeanLoss) -> Result<bool> {
        let row = EvalRow { step: self.state.step, eval_loss: mean.loss, eval_tokens: mean.label_tokens };
        self.metrics.iter_mut().try_for_each(|metrics| metrics.eval(&row))?;
        self.progress.eval(&row);
        Ok(self.state.validated(mean.loss, mean.label_tokens))
    }

    /// Records what the suite found in the present state.
    pub fn evaluated(&mut self, row: SuiteRow) -> Result<()> {
        self.metrics.iter_mut().try_for_each(|metrics| metrics.suite(&row))?;
        self.progress.suite(&row);
        self.state.evaluated_at = Some(row.step);
        if row.step == 0 {
            self.state.before = Some(row);
        }
        Ok(())
    }

    /// Updates the state from the clocks, the files and λ.
    pub fn take_stock(&mut self, trainer: &Trainer) {
        self.state.training_seconds = self.training_seconds();
        self.state.totals.elapsed_seconds = self.elapsed_seconds();
        if let Some(metrics) = &self.metrics {
            self.state.metrics_bytes = metrics.bytes();
        }
        if let Some(modules) = &self.modules {
            self.state.modules_bytes = modules.bytes();
        }
        self.state.dual = trainer.penalties.dual();
        if self.state.bad_steps == 0 {
            self.good = self.state.clone();
        }
    }

    /// Goes back to the last step that was not skipped; `false` if there is none.
    pub fn go_back(&mut self) -> bool {
        self.state = self.good.clone();
        self.state.step > 0
    }

    /// Makes what is in the files survive a system crash.
    pub fn sync(&self) -> Result<()> {
        self.metrics.iter().chain(&self.modules).try_for_each(Metrics::sync)
    }

    /// Writes the record of the run, its inputs and its results.
    pub fn write_record(
        &mut self,
        output: &OutputFolder,
        eval: Option<SuiteEnds>,
        update_norms: Vec<UpdateNorm>,
    ) -> Result<()> {
        self.state.totals.elapsed_seconds = self.elapsed_seconds();
        let (totals, loss) = (self.state.totals.clone(), self.state.loss());
        output.write_record(&self.record, &Results { totals, loss, eval, update_norms })
    }

    /// Closes the books of a finished run.
    pub fn close(self) -> Totals {
        self.progress.finish();
        self.state.totals
    }

    fn training_seconds(&self) -> f64 {
        self.earlier.0 + self.began.elapsed().as_secs_f64()
    }

    fn elapsed_seconds(&self) -> f64 {
        self.earlier.1 + self.record.elapsed_seconds()
    }
}

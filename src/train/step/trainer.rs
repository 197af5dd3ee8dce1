//! One optimizer step: micro-batches, their sum over the ranks, penalty, clipping, AdamW.
//!
//! The loss is the mean over the step's label tokens, whatever micro-batch they came in: sums of losses are divided by
//! the tokens of the whole step, so that batch 4 and batch 2 with accumulation 2 are the same step. The penalty counts
//! once per step.

use super::parallel::{Part, parts, sum_gradients};
use super::penalties::{Bounded, Penalties};
use crate::data::Batch;
use crate::model::{Decoder, DropoutKey, Gradients, Sequences};
use crate::ops::dropout::mix;
use crate::ops::scalar::Scalar;
use crate::ops::sum::total;
use crate::optim::AdamW;
use crate::ranks::{AllReduce, Ranks};
use crate::report::ModuleRow;
use crate::train::defence::{Defence, Undefended};
use crate::train::options::TrainOptions;
use anyhow::{Result, ensure};
use std::fmt;

/// A step that was not taken, because its loss or gradient is not finite (or too large for the optimizer's f32).
/// Parameters and optimizer are as before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NotFinite {
    /// The first micro-batch whose loss is not finite; `None` if all losses are finite and the gradient is not.
    pub micro_batch: Option<usize>,
    pub task_loss: f64,
    pub penalty: f64,
    /// The defence's own term, if it has one.
    pub proximal: Option<f64>,
    /// Before clipping.
    pub grad_norm: f64,
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { task_loss, penalty, proximal, grad_norm, .. } = self;
        let proximal = proximal.map_or(String::new(), |term| format!("the defence's term {term:.4e}, "));
        write!(f, "the loss is {task_loss:.4e}, the penalty {penalty:.4e}, {proximal}the gradient norm {grad_norm:.4e}")
    }
}

impl std::error::Error for NotFinite {}

/// The largest gradient whose square AdamW's second moment, an f32, can hold.
const MAX_GRAD_NORM: f64 = 1.8e19;

/// The outcome of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOutcome {
    /// Mean cross-entropy over label tokens, or what a defence replaces it with.
    pub task_loss: f64,
    /// λ included.
    pub penalty: f64,
    /// The defence's own term, if it has one.
    pub proximal: Option<f64>,
    /// Before clipping.
    pub grad_norm: f64,
    pub tokens: usize,
    pub label_tokens: usize,
    /// Set if λ is found while training.
    pub bounded: Option<Bounded>,
}

/// A model with its penalty, its defence and its optimizer.
pub struct Trainer {
    pub model: Decoder,
    pub optimizer: AdamW,
    pub penalties: Penalties,
    /// Measure every module's update every so many steps.
    pub log_modules_every: Option<usize>,
    /// What was measured in the last step.
    pub modules: Vec<ModuleRow>,
    pub defence: Box<dyn Defence>,
    /// How the gradients of several ranks are summed.
    pub all_reduce: AllReduce,
    checkpointing: bool,
    max_grad_norm: f64,
    seed: u64,
    /// Whether the model has any dropout that needs a key.
    dropout: bool,
}

impl Trainer {
    pub fn new(model: Decoder, penalties: Penalties, options: &TrainOptions, dropout: bool) -> Self {
        Self {
            model,
            penalties,
            log_modules_every: None,
            modules: vec![],
            defence: Box::new(Undefended),
            all_reduce: AllReduce::Host(Ranks::here()),
            optimizer: AdamW::new(options.adam_betas, options.adam_epsilon, options.weight_decay),
            checkpointing: options.gradient_checkpointing,
            max_grad_norm: options.max_grad_norm,
            seed: options.seed,
            dropout,
        }
    }

    /// Runs step number `step` (from 0) on its micro-batches.
    ///
    /// # Errors
    /// [`NotFinite`] if the loss or gradient is not finite; parameters and optimizer are then as before the step.
    pub fn step(&mut self, step: usize, batches: &[Batch], learning_rate: f64) -> Result<StepOutcome> {
        let label_tokens: usize = batches.iter().map(Batch::label_tokens).sum();
        ensure!(label_tokens > 0, "step {} has no label tokens", step + 1);
        let (scale, ranks) = (1.0 / label_tokens as f64, Ranks::here());
        self.defence.begin(step, self.model.parameters())?;
        let mut gradients = Gradients::default();
        let (mut losses, mut micro_batches) = (vec![], vec![]);
        for Part { micro_batch, first_row, batch } in parts(ranks, batches) {
            let seed = || mix(self.seed ^ mix(((step as u64) << 20) + micro_batch as u64));
            let key = self.dropout.then(|| DropoutKey { seed: seed(), first_row });
            losses.push(self.micro_batch(&batch, scale, key, &mut gradients)?);
            micro_batches.push(micro_batch);
        }
        sum_gradients(&self.all_reduce, self.model.parameters(), &mut gradients)?;
        self.modules.clear();
        let is_logged = self.log_modules_every.is_some_and(|every| (step + 1).is_multiple_of(every));
        let rows = is_logged.then_some((step + 1, &mut self.modules));
        let added = self.penalties.add_to(self.model.parameters(), &mut gradients, rows)?;
        let own_term = self.defence.add_to(step, &mut self.model, &mut gradients)?;
        let own_values = own_term.as_deref().unwrap_or_default();
        let [losses, values, own_values, squares] =
            read_all([&losses, &added.values, own_values, &gradients.squares()?])?;
        let not_finite = losses.iter().position(|loss| !loss.is_finite()).map(|part| micro_batches[part]);
        let not_finite = ranks.min(not_finite);
        let [task_loss] = ranks.sum([total(losses.iter().map(|loss| loss * scale))]);
        let added = added.sum(&values);
        let (penalty, proximal) = (added.value, own_term.map(|_| total(own_values.iter().copied())));
        let grad_norm = total(squares.iter().copied()).sqrt();
        let clipping = self.clipping(grad_norm);
        if !(task_loss + penalty + proximal.unwrap_or(0.0)).is_finite()
            || !grad_norm.is_finite()
            || grad_norm * clipping > MAX_GRAD_NORM
        {
            return Err(NotFinite { micro_batch: not_finite, task_loss, penalty, proximal, grad_norm }.into());
        }
        self.optimizer.step(self.model.parameters(), &gradients, learning_rate, clipping)?;
        self.defence.taken(self.model.parameters())?;
        let bounded = self.penalties.ascend(added);
        let tokens = batches.iter().map(Batch::tokens).sum();
        Ok(StepOutcome { task_loss, penalty, proximal, grad_norm, tokens, label_tokens, bounded })
    }

    /// Turns the model into what would be exported now, or back.
    pub fn exchange(&mut self) -> Result<()> {
        self.defence.exchange(self.model.parameters())
    }

    /// What `of` finds in the model as it would be exported now.
    pub fn as_result<T>(&mut self, of: impl FnOnce(&Decoder) -> T) -> Result<T> {
        self.exchange()?;
        let found = of(&self.model);
        self.exchange()?;
        Ok(found)
    }

    /// The summed objective of a micro-batch; adds the gradients of `scale` times that.
    fn micro_batch(
        &mut self,
        batch: &Batch,
        scale: f64,
        key: Option<DropoutKey>,
        gradients: &mut Gradients,
    ) -> Result<Scalar> {
        let (sequences, checkpointing) = (Sequences::from(batch), self.checkpointing);
        let objective = self.defence.objective(&mut self.model, batch)?;
        let objective = objective.as_deref();
        self.model.objective_and_gradients(sequences, scale, checkpointing, key, objective, gradients)
    }

    /// The factor that scales the gradient to `max_grad_norm`, as in PyTorch's `clip_grad_norm_`.
    fn clipping(&self, grad_norm: f64) -> f64 {
        if self.max_grad_norm > 0.0 { (self.max_grad_norm / (grad_norm + 1e-6)).min(1.0) } else { 1.0 }
    }
}

/// The numbers of several lists, read together: the only time in a step that the host waits for the device.
fn read_all<const K: usize>(lists: [&[Scalar]; K]) -> Result<[Vec<f64>; K]> {
    let all: Vec<&Scalar> = lists.iter().copied().flatten().collect();
    let mut values = Scalar::read_all(&all)?.into_iter();
    Ok(lists.map(|list| values.by_ref().take(list.len()).collect()))
}

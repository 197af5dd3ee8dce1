//! `[train]`, `[eval]` and `[output]` of the config: how long, how fast, what is measured, and where the results go.

use crate::names::Naming;
use crate::optim::{Schedule, ScheduleKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Tuning {
    /// Low-rank adapters on the targeted layers; the model itself stays as it is.
    #[default]
    Lora,
    /// Every weight of the model.
    Full,
}

/// `[train]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainOptions {
    /// What is trained.
    pub method: Tuning,
    /// Passes over the data; may be a fraction.
    pub epochs: f64,
    /// Stop after this many optimizer steps, whatever `epochs` says.
    pub max_steps: Option<usize>,
    /// Samples in a micro-batch.
    pub batch_size: usize,
    /// Micro-batches in an optimizer step. Their losses are summed and divided by the step's label tokens.
    pub gradient_accumulation: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// How the learning rate falls after warm-up.
    pub schedule: ScheduleKind,
    /// With `schedule = "step"`: the learning rate's factor after each epoch.
    pub gamma: f64,
    /// Steps over which the learning rate rises linearly from 0.
    pub warmup_steps: Option<usize>,
    /// The same as a share of all steps.
    pub warmup_ratio: Option<f64>,
    /// Decoupled weight decay (AdamW).
    pub weight_decay: f64,
    /// Decay rates of AdamW's two moment estimates.
    pub adam_betas: [f64; 2],
    /// AdamW's term against division by zero.
    pub adam_epsilon: f64,
    /// Scale the gradient down to this global L2 norm where it is larger; 0 turns this off.
    pub max_grad_norm: f64,
    /// Keep only each block's input and recompute the rest in the backward pass: much less memory, about a third more
    /// time, identical results.
    pub gradient_checkpointing: bool,
    /// Stop early after this many validations in a row without a new lowest loss. Needs `output.eval_every_steps`.
    pub patience: Option<usize>,
    /// Stop after this many steps in a row whose loss or gradient is not finite. Such a step changes nothing and is
    /// reported with its samples.
    pub max_bad_steps: usize,
    /// Seed of the adapter's initial values, of shuffling and of dropout.
    pub seed: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            method: Tuning::default(),
            epochs: 1.0,
            max_steps: None,
            batch_size: 8,
            gradient_accumulation: 1,
            learning_rate: 5e-5,
            schedule: ScheduleKind::default(),
            gamma: 0.85,
            warmup_steps: None,
            warmup_ratio: None,
            weight_decay: 0.0,
            adam_betas: [0.9, 0.999],
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            gradient_checkpointing: true,
            patience: None,
            max_bad_steps: 3,
            seed: 42,
        }
    }
}

impl TrainOptions {
    /// The learning-rate schedule of a run of `total_steps` optimizer steps.
    pub fn schedule(&self, total_steps: usize, steps_per_epoch: usize) -> Schedule {
        let by_ratio = self.warmup_ratio.map(|ratio| (total_steps as f64 * ratio).ceil() as usize);
        Schedule {
            kind: self.schedule,
            peak: self.learning_rate,
            gamma: self.gamma,
            warmup_steps: self.warmup_steps.or(by_ratio).unwrap_or(0),
            total_steps,
            steps_per_epoch,
        }
    }
}

/// `[eval]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalOptions {
    /// A suite of evaluations, a file as `asft eval --suite` reads it. It is measured before the first step and on what is
    /// exported: `run.json`, `report.html` and the last lines then tell what training did to the model.
    pub suite: Option<String>,
    /// Measure the suite every so many steps too, as rows of `metrics.jsonl`. Needs `eval.suite`.
    pub every: Option<usize>,
    /// Samples of the suite computed at once.
    pub batch_size: usize,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self { suite: None, every: None, batch_size: 16 }
    }
}

/// `[export]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExportOptions {
    /// Write the adapter with its scale folded into B, lora_alpha = r, and one rank for all modules (lower ones are filled up
    /// with zeros). Every reader of PEFT adapters then computes the same, also those that ignore rsLoRA or the patterns of
    /// ranks and alphas. Checkpoints stay as they are.
    pub fold_scale: bool,
    /// For which class the adapter's names are written: "text", a text model of its own (`model.layers.N`), or "wrapper", a
    /// multimodal class (`model.language_model.layers.N`), such as Gemma3ForConditionalGeneration. Loaded into the other class
    /// an adapter does nothing. Without it, that of the base.
    pub layout: Option<Naming>,
}

/// `[output]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutputOptions {
    /// Folder for the adapter or model, the metrics, the checkpoints and the resolved config.
    pub dir: String,
    /// Write a checkpoint, from which `--resume` goes on, every so many steps and at the end. Without it the only ones
    /// are those of a run that is stopped.
    pub save_every_steps: Option<usize>,
    /// Checkpoints kept, the newest; `save_best` may keep an older one besides.
    pub keep_last: usize,
    /// Write a checkpoint at each new lowest validation loss, keep the best, and export it in the end instead of the
    /// last state. Needs `data.validation`.
    pub save_best: bool,
    /// Compute the validation loss every so many steps, besides at the end. Needs `data.validation`.
    pub eval_every_steps: Option<usize>,
    /// Write each targeted layer's update to `modules.jsonl` every so many steps: its size, its shares along and
    /// orthogonal to the direction (where a direction or `model.unaligned` is given, even if nothing is penalised), and
    /// how the penalty's gradient compares with the task's.
    pub log_modules_every: Option<usize>,
}

impl Default for OutputOptions {
    fn default() -> Self {
        Self {
            dir: "runs/asft".to_string(),
            save_every_steps: None,
            keep_last: 2,
            save_best: false,
            eval_every_steps: None,
            log_modules_every: None,
        }
    }
}

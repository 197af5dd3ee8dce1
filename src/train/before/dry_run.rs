//! `asft train --dry-run`: reads settings, config.json, tokenizer and data, and estimates what the run will take.

use super::cards::Card;
use super::estimate::{Estimate, Memory, Work};
use super::inputs::{Sources, check_ranks, evaluations, model_place, target_shapes};
use super::prediction::{Prediction, duration};
use super::problems::{Problems, START};
use super::workload::Workload;
use crate::adapter::module_shape;
use crate::checkpoint::Checkpoint;
use crate::config::Settings;
use crate::data::{Counts, Taken};
use crate::eval::{Located, Prepared as Suite};
use crate::hub::{self, Resolved};
use crate::memory::Capacity;
use crate::method::direction_file::Directions;
use crate::model::{DeviceKind, ModelSpec};
use crate::ops::gpu::Serving;
use crate::ops::machine::{copy_rate, gemm_rate};
use crate::train::folder::output::OutputFolder;
use crate::train::options::Tuning;
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use candle_core::Device;
use indicatif::{FormattedDuration, HumanBytes};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

/// Share of the GEMM rate that products of many shapes reach together, and of the copy rate that element-wise work
/// reaches; from the measurements in `docs/performance.md`.
const GEMM_SHARE: f64 = 0.95;
const COPY_SHARE: f64 = 0.6;

/// What a run will take.
#[derive(Debug, Serialize)]
pub struct Forecast {
    pub samples: usize,
    pub tokens: usize,
    pub label_tokens: usize,
    pub steps_per_epoch: usize,
    pub total_steps: usize,
    /// Tokens of the largest micro-batch.
    pub micro_batch_tokens: usize,
    pub memory_bytes: Memory,
    pub peak_memory_bytes: usize,
    /// Memory available on the machine, if known; on a GPU, what a run can use of a named card's.
    pub available_memory_bytes: Option<usize>,
    /// For a step of mean size.
    pub step_work: Work,
    /// On the CPU only: a GPU's rate is not known before it is used.
    pub time: Option<Time>,
    /// On a GPU whose card is named.
    pub prediction: Option<Prediction>,
    /// What is taken of each source, if there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Taken>,
    #[serde(skip)]
    counts: Counts,
    #[serde(skip)]
    trains: &'static str,
}

/// Time according to the CPU's measured rates.
#[derive(Debug, Serialize)]
pub struct Time {
    pub step_seconds: f64,
    pub run_seconds: f64,
    pub gemm_flops_per_second: f64,
    pub copy_bytes_per_second: f64,
}

/// Forecasts a run without loading weights, and without opening a GPU that is asked for by name; on `card`, if one is named.
///
/// # Errors
/// A card, and a device that is none.
/// Whatever [`crate::train::run`] would refuse in settings, config.json, tokenizer, data and the paths of its output. Of
/// the direction file or the unaligned model, that it is there and has the targets in their shapes.
pub fn dry_run(settings: &Settings, card: Option<&Card>) -> Result<Forecast> {
    if let Some(card) = card {
        let named = settings.model.device == DeviceKind::Cuda;
        ensure_valid!(named, "--gpu {} is a card for --device cuda; the device is another", card.name);
    }
    let mut problems = Problems::default();
    let sources = Sources::find(settings, hub::resolve_without_weights, &mut problems);
    let evaluations = evaluations(settings, &mut problems);
    let spec = sources.spec(&mut problems);
    let targets = spec.as_ref().and_then(|spec| problems.note(targets(settings, spec)));
    let inputs = spec.as_ref().filter(|_| targets.is_some());
    let inputs = inputs.and_then(|spec| sources.read(settings, spec, &mut problems));
    if let (Some(spec), Some(targets)) = (&spec, &targets) {
        check_direction(settings, spec, targets, &mut problems);
    }
    problems.note(check_output(settings));
    if let (Some(base), Some(spec)) = (&sources.base, &spec) {
        problems.note(check_suite(settings, evaluations, base, spec).context("eval.suite"));
    }
    let (Some(spec), Some(targets), Some(inputs), true) = (spec, targets, inputs, problems.0.is_empty()) else {
        return Err(problems.into_error(START));
    };
    let workload = Workload::of(settings, &inputs)?;
    // Asked once: `auto` opens a GPU to know.
    let accelerator = settings.model.device.accelerator();
    let is_cpu = accelerator.is_none();
    let quantised = sources.base.as_ref().map_or_else(BTreeMap::new, quantised_bytes);
    let estimate =
        Estimate::new(&spec, settings, &targets, &quantised, accelerator.map(Serving::of)).context("lora")?;
    let memory = estimate.memory(&workload);
    let (work, largest) = (estimate.mean_work(&workload), workload.largest);
    let counts = inputs.train.counts;
    let prediction = card.map(|card| Prediction::new(card, &estimate, &workload));
    let available =
        if is_cpu { Capacity::read().map(|machine| machine.available) } else { card.map(Card::usable_bytes) };
    Ok(Forecast {
        samples: inputs.train.len(),
        tokens: counts.tokens,
        label_tokens: counts.label_tokens,
        steps_per_epoch: workload.steps_per_epoch,
        total_steps: workload.total_steps,
        micro_batch_tokens: largest.tokens,
        memory_bytes: memory,
        peak_memory_bytes: memory.total(),
        available_memory_bytes: available,
        step_work: work,
        time: is_cpu.then(|| time(&spec, largest.tokens, work, workload.total_steps)),
        prediction,
        sources: inputs.train.sources.clone(),
        counts,
        trains: if settings.train.method == Tuning::Lora { "adapter" } else { "weights that train" },
    })
}

/// The bytes of each weight that the model holds quantised, as far as its weights are on this machine.
fn quantised_bytes(base: &Resolved) -> BTreeMap<String, usize> {
    Checkpoint::open(&base.place).map(|checkpoint| checkpoint.quantised_bytes()).unwrap_or_default()
}

/// Checks the samples of `[eval]`, and judges that are on this machine: others would be fetched with their weights.
fn check_suite(settings: &Settings, mut found: Vec<Located>, base: &Resolved, spec: &ModelSpec) -> Result<()> {
    found.retain(|located| located.judge().is_none_or(hub::is_local));
    // No judge is loaded: where it would compute does not matter.
    let place = (&Device::Cpu, settings.model.dtype.into());
    Suite::new(&found, base, spec, place).map(|_| ())
}

/// The modules with an adapter or a penalty, checked as far as config.json allows.
fn targets(settings: &Settings, spec: &ModelSpec) -> Result<Vec<String>> {
    let targets = settings.lora.targets(spec).context("lora")?;
    if settings.train.method == Tuning::Lora && settings.lora.init_adapter.is_none() {
        check_ranks(spec, &settings.lora.sizes(&targets).context("lora")?)?;
    }
    Ok(targets)
}

/// Looks at what the direction comes from. Weights are not needed for a forecast, so they are not compared.
fn check_direction(settings: &Settings, spec: &ModelSpec, targets: &[String], problems: &mut Problems) {
    if !settings.uses_direction() {
        return;
    }
    let shapes = target_shapes(spec, targets);
    if let Some(path) = &settings.asft.direction {
        problems.note(Directions::open(Path::new(path)).and_then(|file| file.check_against(&shapes, None)));
    } else if let Some(id) = &settings.model.unaligned
        && let Some(found) = model_place(id, "model.unaligned", hub::resolve_without_weights, problems)
        && let Some(other) = problems.note(ModelSpec::load(&found.place).context("model.unaligned"))
    {
        problems.note(check_partner(id, &shapes, &other));
    }
}

/// Refuses an unaligned model whose config.json gives a target another shape.
fn check_partner(id: &str, shapes: &[(String, (usize, usize))], other: &ModelSpec) -> Result<()> {
    let differing = shapes.iter().find(|(module, shape)| module_shape(other, module) != Some(*shape));
    let Some((module, (d_out, d_in))) = differing else { return Ok(()) };
    let found =
        module_shape(other, module).map_or("not there".to_string(), |(rows, columns)| format!("[{rows}, {columns}]"));
    Err(invalid!(
        "model.unaligned: {module}.weight is [{d_out}, {d_in}] in the aligned model and {found} in {id}; it must be the base \
         that the aligned model was tuned from"
    ))
}

/// Checks the output folder. Whether an earlier run in it may be replaced or resumed depends on how the run is started.
fn check_output(settings: &Settings) -> Result<()> {
    let output = OutputFolder::new(settings);
    output.content()?;
    output.check_against_inputs(settings, false)
}

fn time(spec: &ModelSpec, tokens: usize, work: Work, total_steps: usize) -> Time {
    let gemm = gemm_rate(tokens.clamp(1, 1024), spec.hidden_size, spec.intermediate_size);
    let copy = copy_rate();
    let step_seconds =
        (work.gemm_flops + work.attention_flops) / (gemm * GEMM_SHARE) + work.traffic_bytes / (copy * COPY_SHARE);
    Time {
        step_seconds,
        run_seconds: step_seconds * total_steps as f64,
        gemm_flops_per_second: gemm,
        copy_bytes_per_second: copy,
    }
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes: usize| HumanBytes(bytes as u64).to_string();
        writeln!(f, "data     {}", self.counts)?;
        for taken in &self.sources {
            writeln!(f, "           {taken}")?;
        }
        writeln!(
            f,
            "steps    {} ({} an epoch), at most {} tokens in a micro-batch",
            self.total_steps, self.steps_per_epoch, self.micro_batch_tokens
        )?;
        let memory = self.memory_bytes;
        writeln!(f, "memory   {} at the peak:", size(self.peak_memory_bytes))?;
        let during = if memory.activations >= memory.logits { "activations" } else { "activations and logits" };
        let at_first = memory.before > memory.step();
        let of_step = |bytes: usize| if at_first { 0 } else { bytes };
        for (part, bytes) in [
            ("frozen weights", memory.weights),
            (&format!("{}, gradients, AdamW", self.trains), of_step(memory.trained)),
            ("direction", memory.direction),
            (during, of_step(memory.activations.max(memory.logits))),
            ("the pass before the first step", if at_first { memory.before } else { 0 }),
            (if self.time.is_some() { "samples and program" } else { "context (assumed)" }, memory.process),
        ] {
            if bytes > 0 {
                writeln!(f, "           {part:<36} {:>12}", size(bytes))?;
            }
        }
        if let Some(available) = self.available_memory_bytes {
            let place = if self.prediction.is_some() { "usable on the card" } else { "available" };
            let verdict = if available < self.peak_memory_bytes { "; too little" } else { "" };
            writeln!(f, "           of {} {place}{verdict}", size(available))?;
        }
        match (&self.time, &self.prediction) {
            (Some(time), _) => write!(
                f,
                "time     {:.1?} a step, {} in all, at {:.0} GFLOP/s and {:.1} GB/s measured now",
                Duration::from_secs_f64(time.step_seconds),
                FormattedDuration(duration(time.run_seconds)),
                time.gemm_flops_per_second / 1e9,
                time.copy_bytes_per_second / 1e9
            ),
            (None, Some(prediction)) => write!(f, "{prediction}"),
            (None, None) => write!(
                f,
                "work     {:.2} TFLOP a step; --gpu predicts the time on a card that it names",
                (self.step_work.gemm_flops + self.step_work.attention_flops) / 1e12
            ),
        }
    }
}

//! Three training steps of a toy model that is part of the program, against what PyTorch + PEFT makes of them.
//!
//! The model, its unaligned partner, the adapter and the batch are the golden fixture `llama_gqa`; the steps go through
//! the files, the direction and the [`Trainer`] as those of a run do. `tests/it/doctor.rs` compares the numbers below
//! with the fixture's, which `tests/fixtures/make/goldens.py` made.

use super::options::TrainOptions;
use super::step::penalties::Penalties;
use super::step::trainer::Trainer;
use crate::adapter;
use crate::checkpoint::Checkpoint;
use crate::data::{Example, collate};
use crate::doctor::{Finding, Tolerance, Worst};
use crate::hub;
use crate::method::AsftOptions;
use crate::method::direction::{self, DirectionRequest};
use crate::method::direction_file::Directions;
use crate::method::spectral::Keep;
use crate::model::{Decoder, ModelSpec, Weights};
use crate::names::Targets;
use anyhow::{Context, Result};
use candle_core::{DType, Device};
use indicatif::ProgressBar;
use std::path::Path;

macro_rules! fixture {
    ($file:literal) => {
        ($file, include_bytes!(concat!("../../tests/fixtures/llama_gqa/", $file)))
    };
}

/// The toy's files by their place in its folder.
const FILES: [(&str, &[u8]); 6] = [
    fixture!("model/config.json"),
    fixture!("model/model.safetensors"),
    fixture!("unaligned/config.json"),
    fixture!("unaligned/model.safetensors"),
    fixture!("adapter/adapter_config.json"),
    fixture!("adapter/adapter_model.safetensors"),
];
const BATCH: &[u8] = fixture!("batch.safetensors").1;

const LEARNING_RATE: f64 = 5e-3;
const WEIGHT_DECAY: f64 = 0.01;
const LAMBDA: f64 = 0.5;
/// Task loss, penalty and gradient norm of each step, in f32.
pub const STEPS: [[f64; 3]; 3] =
    [[5.5713544, 2.811973, 5.768104], [4.931832, 2.426763, 4.6224003], [4.456147, 2.1124787, 4.089506]];
/// About 1e-4 in f32; in half precision the gradients of the narrow toy are off by a few per cent.
const TOLERANCE: Tolerance = Tolerance { wide: 1000.0, narrow: 8.0 };

/// Takes the steps on `device` in `dtype`.
pub fn three_steps(device: &Device, dtype: DType) -> Finding {
    Finding::of("training", "three steps of a toy, against PyTorch", TOLERANCE, |worst| compare(device, dtype, worst))
}

fn compare(device: &Device, dtype: DType, worst: &mut Worst) -> Result<()> {
    let scratch = tempfile::tempdir().context("a folder for the toy model")?;
    for (name, bytes) in FILES {
        let path = scratch.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(scratch.path()))?;
        std::fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
    }
    let mut trainer = trainer(scratch.path(), device, dtype)?;
    let batch = [collate(&samples()?)];
    for (step, expected) in STEPS.iter().enumerate() {
        let outcome = trainer.step(step, &batch, LEARNING_RATE)?;
        let got = [outcome.task_loss, outcome.penalty, outcome.grad_norm];
        for (name, (got, expected)) in ["loss", "penalty", "gradient norm"].iter().zip(got.into_iter().zip(expected)) {
            worst.number(format!("{name} of step {}", step + 1), dtype, got, *expected);
        }
    }
    Ok(())
}

fn trainer(dir: &Path, device: &Device, dtype: DType) -> Result<Trainer> {
    let progress = ProgressBar::hidden();
    let resolve = |part: &str| hub::resolve(&dir.join(part).display().to_string(), true);
    let (base, unaligned) = (resolve("model")?, resolve("unaligned")?);
    let spec = ModelSpec::load(&base.place)?;
    let mut model = Decoder::load(&spec, &Checkpoint::open(&base.place)?, (device, dtype), Weights::Frozen, &progress)?;
    let adapter = adapter::load_for(&dir.join("adapter"), &spec, device)?;
    let (loras, parameters) = adapter.trainable()?;
    model.attach(loras, parameters)?;
    let request = DirectionRequest {
        aligned: base,
        unaligned,
        out: dir.join("direction.safetensors"),
        targets: Targets::AllLinear,
        keep: Keep::Tolerance(0.0),
        allow_missing: false,
        allow_equal: false,
        allow_quantised: false,
    };
    direction::compute(&request, &progress)?;
    let directions = Directions::open(&request.out)?;
    let asft = AsftOptions { lambda: LAMBDA.into(), ..Default::default() };
    let targets: Vec<String> = adapter.modules.keys().cloned().collect();
    let penalties = Penalties::new(&asft, &targets, Some(&directions), Some(&adapter), &model)?;
    let options = TrainOptions { learning_rate: LEARNING_RATE, weight_decay: WEIGHT_DECAY, ..Default::default() };
    Ok(Trainer::new(model, penalties, &options, false))
}

/// The batch without the padding that PyTorch needs.
fn samples() -> Result<Vec<Example>> {
    let tensors = candle_core::safetensors::load_buffer(BATCH, &Device::Cpu)?;
    let rows = |name: &str| -> Result<Vec<Vec<i64>>> {
        Ok(tensors.get(name).with_context(|| format!("the toy's {name}"))?.to_vec2::<i64>()?)
    };
    let (ids, labels, mask) = (rows("input_ids")?, rows("labels")?, rows("attention_mask")?);
    let all = ids.into_iter().zip(labels).zip(mask);
    Ok(all
        .map(|((ids, labels), mask)| {
            let length = mask.iter().filter(|&&own| own == 1).count();
            Example {
                input_ids: ids.into_iter().take(length).map(|id| id as u32).collect(),
                labels: labels.into_iter().take(length).collect(),
            }
        })
        .collect())
}

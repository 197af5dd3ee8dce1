//! Ten optimizer steps against PyTorch + PEFT: losses, penalties, gradient norms, and where the parameters end.
//!
//! Goldens: `tests/fixtures/make/goldens.py`, whose penalty is the literal formula.

use crate::support::files::fixture;
use crate::support::goldens::*;
use crate::support::tensors::{relative_error, to_vec};
use asft::adapter::Adapter;
use asft::data::{Batch, collate};
use asft::hub;
use asft::method::direction::{DirectionRequest, compute};
use asft::method::direction_file::Directions;
use asft::method::spectral::Keep;
use asft::method::{AsftOptions, Penalize};
use asft::names::Targets;
use asft::train::{NotFinite, Penalties, StepOutcome, TrainOptions, Trainer};
use indicatif::ProgressBar;

/// The four samples in micro-batches of `size`, all in one step.
fn batches(case: &str, size: usize) -> Vec<Batch> {
    GoldenBatch::load(case).examples().chunks(size).map(collate).collect()
}

/// The direction of a case's pair, at full rank.
fn directions(case: &str, dir: &std::path::Path) -> Directions {
    let resolve = |part: &str| hub::resolve(&fixture(case).join(part).display().to_string(), true).unwrap();
    let request = DirectionRequest {
        aligned: resolve("model"),
        unaligned: resolve("unaligned"),
        out: dir.join("direction.safetensors"),
        targets: Targets::AllLinear,
        keep: Keep::Tolerance(0.0),
        allow_missing: false,
        allow_equal: false,
        allow_quantised: false,
    };
    compute(&request, &ProgressBar::hidden()).unwrap();
    Directions::open(&request.out).unwrap()
}

fn options(learning_rate: f64, weight_decay: f64, checkpointing: bool) -> TrainOptions {
    TrainOptions { learning_rate, weight_decay, gradient_checkpointing: checkpointing, ..Default::default() }
}

fn lora_trainer(case: &str, checkpointing: bool) -> (Trainer, Adapter) {
    let scratch = tempfile::tempdir().unwrap();
    let mut model = base(case, false);
    let adapter = golden_adapter(case);
    attach(&mut model, &adapter);
    let with_penalty = fixture(case).join("unaligned").is_dir();
    let directions = with_penalty.then(|| directions(case, scratch.path()));
    let asft = if with_penalty {
        AsftOptions { lambda: 0.5.into(), ..Default::default() }
    } else {
        AsftOptions { penalize: Penalize::None, ..Default::default() }
    };
    let targets: Vec<String> = adapter.modules.keys().cloned().collect();
    let penalties = Penalties::new(&asft, &targets, directions.as_ref(), Some(&adapter), &model).unwrap();
    (Trainer::new(model, penalties, &options(5e-3, 0.01, checkpointing), false), adapter)
}

fn ten_steps(trainer: &mut Trainer, batches: &[Batch], learning_rate: f64) -> Vec<StepOutcome> {
    (0..10).map(|step| trainer.step(step, batches, learning_rate).unwrap()).collect()
}

#[track_caller]
fn check_curve(golden: &Golden, prefix: &str, outcomes: &[StepOutcome]) {
    type Field = fn(&StepOutcome) -> f64;
    let fields: [(&str, Field); 4] = [
        ("loss", |o| o.task_loss + o.penalty),
        ("task_loss", |o| o.task_loss),
        ("penalty", |o| o.penalty),
        ("grad_norm", |o| o.grad_norm),
    ];
    for (name, field) in fields {
        let expected = golden.values(&format!("{prefix}.{name}"));
        for (step, (outcome, expected)) in outcomes.iter().zip(expected).enumerate() {
            let got = field(outcome);
            // Full tuning starts at ΔW = 0, where the penalty is exactly zero.
            let close = (got - expected).abs() <= 1e-4 * expected.abs() + 1e-12;
            assert!(close, "{prefix}.{name} step {step}: {got} {expected}");
        }
    }
}

/// Ten steps of every case that has a curve, the batch in parts of `size`.
fn ten_lora_steps(size: usize, checkpointing: bool) {
    for case in CASES {
        let golden = Golden::expected(case);
        if golden.with_prefix("curve.").next().is_none() {
            continue;
        }
        let (mut trainer, adapter) = lora_trainer(case, checkpointing);
        let outcomes = ten_steps(&mut trainer, &batches(case, size), 5e-3);
        check_curve(&golden, "curve", &outcomes);
        check_end(&golden, &adapter.with_values(trainer.model.parameters()).unwrap(), case);
    }
}

#[test]
fn ten_lora_steps_equal_peft() {
    ten_lora_steps(4, true);
}

#[test]
fn ten_lora_steps_without_checkpointing_equal_peft() {
    ten_lora_steps(4, false);
}

#[test]
fn ten_lora_steps_of_accumulated_gradients_equal_peft() {
    ten_lora_steps(2, true);
}

#[test]
fn ten_full_steps_equal_transformers() {
    let (case, scratch) = ("llama_gqa", tempfile::tempdir().unwrap());
    let golden = Golden::expected(case);
    let model = base(case, true);
    let targets: Vec<String> = spec(case)
        .linear_modules()
        .into_iter()
        .filter(|module| module.ends_with("q_proj") || module.ends_with("v_proj"))
        .collect();
    let asft = AsftOptions { lambda: 0.5.into(), ..Default::default() };
    let penalties = Penalties::new(&asft, &targets, Some(&directions(case, scratch.path())), None, &model).unwrap();
    let mut trainer = Trainer::new(model, penalties, &options(1e-3, 0.0, true), false);
    let outcomes = ten_steps(&mut trainer, &batches(case, 4), 1e-3);
    check_curve(&golden, "fullcurve", &outcomes);
    let mut compared = 0;
    for (name, expected) in golden.with_prefix("fullcurve.final.") {
        let error = relative_error(&to_vec(trainer.model.parameters()[name].as_tensor()), &to_vec(expected));
        assert!(error <= 1e-3, "{name}: {error}");
        compared += 1;
    }
    assert!(compared >= 10, "{compared}");
}

#[test]
fn a_step_that_is_not_finite_changes_nothing() {
    let batches = batches("llama_gqa", 2);
    let (mut reference, _) = lora_trainer("llama_gqa", true);
    let expected: Vec<StepOutcome> = (0..2).map(|step| reference.step(step, &batches, 5e-3).unwrap()).collect();
    let (mut trainer, _) = lora_trainer("llama_gqa", true);
    let mut got = vec![trainer.step(0, &batches, 5e-3).unwrap()];
    let poisoned = trainer.model.parameters().values().next().unwrap().clone();
    let value = poisoned.as_tensor().copy().unwrap();
    poisoned.set(&(&value * f64::NAN).unwrap()).unwrap();
    let error = trainer.step(1, &batches, 5e-3).unwrap_err();
    let reason = error.downcast_ref::<NotFinite>().unwrap();
    assert!(reason.micro_batch == Some(0) && reason.task_loss.is_nan() && trainer.optimizer.steps() == 1);
    poisoned.set(&value).unwrap();
    got.push(trainer.step(1, &batches, 5e-3).unwrap());
    assert_eq!(got, expected);
}

#[test]
fn checkpointing_and_accumulation_do_not_change_a_run() {
    let run = |size, checkpointing| {
        let (mut trainer, _) = lora_trainer("llama_gqa", checkpointing);
        ten_steps(&mut trainer, &batches("llama_gqa", size), 5e-3)
    };
    let reference = run(4, true);
    assert_eq!(reference, run(4, false));
    for (whole, halves) in reference.iter().zip(run(2, true)) {
        assert!((whole.task_loss / halves.task_loss - 1.0).abs() < 1e-5);
    }
}

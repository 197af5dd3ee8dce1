//! Constrained SFT in the training step, on the golden models: its gradients against finite differences and
//! against the objective written out.

use crate::support::goldens::*;
use crate::support::tensors::{max_difference, norm, to_vec};
use asft::data::collate;
use asft::method::{AsftOptions, Penalize};
use asft::model::{Decoder, Gradients, Sequences};
use asft::train::{ConstrainedSft, Penalties, TrainOptions, Trainer};
use candle_core::Tensor;

const BETAS: [f64; 3] = [0.5, 2.0, 0.1];

/// Each label token's loss, sample by sample, from the logits.
fn losses(model: &Decoder, batch: &GoldenBatch) -> Vec<f64> {
    let vocab = model.spec().vocab_size;
    let logits = to_vec(&model.logits(&batch.input_ids, &batch.lengths).unwrap());
    let (mut losses, mut start) = (vec![], 0);
    for &length in &batch.lengths {
        for t in start + 1..start + length {
            if let Ok(label) = usize::try_from(batch.labels[t]) {
                let row = &logits[(t - 1) * vocab..t * vocab];
                losses.push(row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[label]);
            }
        }
        start += length;
    }
    losses
}

/// The summed objective of the batch, as in the paper up to a constant.
fn literal(model: &Decoder, batch: &GoldenBatch, reference: &[f64]) -> f64 {
    let betas = ConstrainedSft::new(&BETAS).betas(&collate(&batch.examples()));
    let losses = losses(model, batch);
    assert_eq!((losses.len(), betas.len()), (reference.len(), reference.len()));
    let tokens = losses.iter().zip(reference).zip(betas);
    tokens.map(|((loss, r), beta)| r + 2.0 / beta * (((1.0 + (beta * (loss - r)).exp()) / 2.0).ln())).sum()
}

#[test]
fn constrained_sft_equals_its_formula_and_finite_differences() {
    // Gemma 2 caps its logits; Qwen 2 has a tied head.
    for case in ["llama_gqa", "gemma2", "qwen2"] {
        let batch = GoldenBatch::load(case);
        let mut model = adapted(case);
        let before = losses(&model, &batch);
        let reference = model.reference_losses(batch.sequences()).unwrap();
        let plain = losses(&base(case, false), &batch);
        assert!(max_difference(&reference, &plain) < 1e-4 && max_difference(&reference, &before) > 1e-2);
        // The adapters are back.
        assert_eq!(losses(&model, &batch), before);

        let betas = ConstrainedSft::new(&BETAS).betas(&collate(&batch.examples()));
        let objective = |i: usize, loss: f64| ConstrainedSft::token_objective(betas[i], loss, reference[i]);
        for checkpointing in [true, false] {
            let mut gradients = Gradients::default();
            let (sequences, objective) = (batch.sequences(), Some(&objective as _));
            let value =
                model.objective_and_gradients(sequences, 0.5, checkpointing, None, objective, &mut gradients).unwrap();
            let value = value.read().unwrap();
            let expected = literal(&model, &batch, &reference);
            assert!((value / expected - 1.0).abs() < 1e-5, "{case}: {value} {expected}");
            for (name, var) in model.parameters().iter().step_by(3) {
                let gradient = gradients.get(name).unwrap();
                let kept = var.as_tensor().copy().unwrap();
                // Along the gradient itself, where the differences are largest.
                let length = norm(gradient);
                let moved = |h: f64| {
                    var.set(&(&kept + (gradient * (h / length)).unwrap()).unwrap()).unwrap();
                    literal(&model, &batch, &reference)
                };
                let difference = 0.5 * (moved(1e-2) - moved(-1e-2)) / 2e-2;
                var.set(&kept).unwrap();
                assert!((difference / length - 1.0).abs() < 2e-2, "{case} {name}: {difference} {length}");
            }
        }
    }
}

#[test]
fn constrained_sft_is_plain_training_where_the_model_has_not_moved() {
    let case = "llama_gqa";
    let trainer = |betas: Option<&[f64]>| {
        let mut model = base(case, false);
        let mut adapter = golden_adapter(case);
        adapter.modules.values_mut().for_each(|module| module.b = Tensor::zeros_like(&module.b).unwrap());
        attach(&mut model, &adapter);
        let asft = AsftOptions { penalize: Penalize::None, ..Default::default() };
        let penalties = Penalties::new(&asft, &[], None, Some(&adapter), &model).unwrap();
        let mut trainer = Trainer::new(model, penalties, &TrainOptions::default(), false);
        if let Some(betas) = betas {
            trainer.defence = Box::new(ConstrainedSft::new(betas));
        }
        trainer
    };
    let batches = [collate(&GoldenBatch::load(case).examples())];
    let steps = |trainer: &mut Trainer| -> Vec<f64> {
        (0..8).map(|step| trainer.step(step, &batches, 2e-2).unwrap().task_loss).collect()
    };
    let (mut plain, mut held, mut loose) = (trainer(None), trainer(Some(&[20.0])), trainer(Some(&[1e-6])));
    let (plain_losses, held_losses, loose_losses) = (steps(&mut plain), steps(&mut held), steps(&mut loose));
    assert!((plain_losses[0] / held_losses[0] - 1.0).abs() < 1e-6);
    assert!(max_difference(&plain_losses, &loose_losses) < 1e-3, "{plain_losses:?} {loose_losses:?}");
    let mean_loss = |trainer: &Trainer| {
        let batch = &batches[0];
        trainer.model.loss(Sequences::from(batch)).unwrap() / batch.label_tokens() as f64
    };
    let (plain, held) = (mean_loss(&plain), mean_loss(&held));
    assert!(plain_losses[0] - plain > 1.5 * (plain_losses[0] - held), "{} {plain} {held}", plain_losses[0]);
}

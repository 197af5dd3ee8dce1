//! Routers whose experts nearly tie, made on purpose: the choice is PyTorch's, and of equals the first.
//!
//! Goldens: `tests/fixtures/make/ties.py`.

use crate::support::files::{fixture, read_json};
use crate::support::goldens::*;
use crate::support::tensors::{max_difference, relative_error, to_vec};
use asft::checkpoint::{Checkpoint, save_tensors};
use asft::model::{Decoder, Gradients, ModelSpec, Weights};
use candle_core::{DType, Device, Tensor};
use indicatif::ProgressBar;
use std::collections::BTreeMap;

/// The case's base with the golden's routers, changed by `change`, all of it training.
fn tied(case: &str, golden: &Golden, change: impl Fn(Tensor) -> Tensor) -> Decoder {
    let (stored, scratch) = (base_checkpoint(case), tempfile::tempdir().unwrap());
    let read = |name: &str| (name.to_string(), stored.tensor(name, DType::F32, &Device::Cpu).unwrap());
    let mut tensors: BTreeMap<String, Tensor> = stored.names().map(read).collect();
    let routers = golden.with_prefix("router.").map(|(name, weight)| (name.to_string(), change(weight.clone())));
    tensors.extend(routers);
    save_tensors(&scratch.path().join("model.safetensors"), &tensors).unwrap();
    // The names are those of the text model.
    let spec = ModelSpec { wrapped: false, ..spec(case) };
    let weights = Checkpoint::open(scratch.path()).unwrap();
    let place = (device(), DType::F32);
    Decoder::load(&spec, &weights, place, Weights::Trained, &ProgressBar::hidden()).unwrap()
}

fn golden(case: &str) -> Golden {
    Golden::load(&fixture("ties").join(format!("{case}.safetensors")))
}

fn logit_difference(case: &str, model: &Decoder) -> f64 {
    let batch = GoldenBatch::load(case);
    let logits = to_vec(&model.logits(&batch.input_ids, &batch.lengths).unwrap());
    max_difference(&logits, &batch.live(&golden(case).values("logits"), spec(case).vocab_size))
}

#[test]
fn of_nearly_equal_experts_the_choice_is_pytorch_s_and_of_equals_the_first() {
    for (case, has_equals) in [("qwen3_moe", false), ("qwen3_moe_raw", true), ("qwen3_5_moe", true)] {
        let note = read_json(&fixture("ties").join(format!("{case}.json")));
        assert!((1e-5..1e-3).contains(&note["smallest_gap"].as_f64().unwrap()), "{case}");
        assert_eq!(note["equal"].as_u64().unwrap() > 0, has_equals, "{case}");
        let (golden, batch) = (golden(case), GoldenBatch::load(case));
        let model = tied(case, &golden, |weight| weight);
        let difference = logit_difference(case, &model);
        assert!(difference <= 1e-4, "{case}: {difference}");
        let (mut gradients, scale) = (Gradients::default(), 1.0 / batch.label_tokens() as f64);
        let sum = model.loss_and_gradients(batch.sequences(), scale, true, None, &mut gradients).unwrap();
        assert!((sum * scale / golden.values("loss64")[0] - 1.0).abs() <= 1e-5, "{case}");
        let compared = golden.with_prefix("grad.").map(|(name, expected)| {
            let error = relative_error(&to_vec(gradients.get(name).unwrap()), &to_vec(expected));
            assert!(error <= 1e-4, "{case} {name}: {error}");
        });
        assert!(compared.count() >= 3, "{case}");
    }
}

/// The golden notices the other choice: each row of a router as far on the other side of its group's first, about a thousandth of a
/// logit away.
#[test]
fn the_other_choice_shows_in_the_golden() {
    for (case, firsts) in [("qwen3_moe", [0u32, 0, 0, 3, 3, 3].as_slice()), ("qwen3_5_moe", &[0, 0, 0, 0, 4])] {
        let firsts = Tensor::new(firsts, &Device::Cpu).unwrap();
        let reflected = |weight: Tensor| ((weight.index_select(&firsts, 0).unwrap() * 2.0).unwrap() - weight).unwrap();
        let difference = logit_difference(case, &tied(case, &golden(case), reflected));
        assert!(difference > 0.1, "{case}: {difference}");
    }
}

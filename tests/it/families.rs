//! What the families add to the parity tests: rope scalings, half precision, and several sequences in a batch.
//!
//! Goldens: `tests/fixtures/make/goldens.py`. Run with `ASFT_OPS=generic` too: the code that an accelerator runs.

use crate::support::files::fixture;
use crate::support::goldens::*;
use crate::support::tensors::{max_difference, relative_error, to_vec};
use asft::model::{Decoder, Gradients, ModelSpec, Sequences, Weights};
use candle_core::DType;
use indicatif::ProgressBar;

#[test]
fn both_dialects_are_one_model() {
    let with_both = CASES.into_iter().filter(|case| fixture(case).join("model4").is_dir());
    let compared = with_both.map(|case| {
        let dir = fixture(case);
        let [five, four] = ["model", "model4"].map(|part| ModelSpec::load(&dir.join(part)).unwrap());
        assert_eq!(five, four, "{case}");
    });
    assert_eq!(compared.count(), 7);
}

#[test]
fn rope_scalings_equal_transformers() {
    for (kind, case) in [
        ("dynamic", "llama_gqa"),
        ("yarn", "llama_gqa"),
        ("yarn_mscale", "llama_gqa"),
        ("longrope", "llama_gqa"),
        ("phi3_longrope", "phi3"),
    ] {
        let dir = fixture("rope").join(kind);
        let golden = Golden::load(&dir.join("expected.safetensors"));
        let spec = ModelSpec::load(&dir).unwrap();
        let place = (device(), DType::F32);
        let weights = base_checkpoint(case);
        let mut model = Decoder::load(&spec, &weights, place, Weights::Frozen, &ProgressBar::hidden()).unwrap();
        attach(&mut model, &golden_adapter(case));

        let batch = GoldenBatch::load(case);
        let logits = to_vec(&model.logits(&batch.input_ids, &batch.lengths).unwrap());
        let expected = batch.live(&golden.values("lora.logits"), spec.vocab_size);
        assert!(max_difference(&logits, &expected) <= 1e-4, "{kind}: {}", max_difference(&logits, &expected));
        let mut gradients = Gradients::default();
        let scale = 1.0 / batch.label_tokens() as f64;
        let sum = model.loss_and_gradients(batch.sequences(), scale, true, None, &mut gradients).unwrap();
        assert!((sum * scale / golden.values("lora.loss64")[0] - 1.0).abs() <= 1e-5, "{kind}");
        for (name, expected) in golden.with_prefix("lora.grad.") {
            let error = relative_error(&to_vec(gradients.get(&format!("{name}.weight")).unwrap()), &to_vec(expected));
            assert!(error <= 1e-4, "{kind} {name}: {error}");
        }
    }
}

/// A batch holds its sequences one after another, packed or not: none may change another's logits, loss or gradients.
#[test]
fn sequences_of_a_batch_do_not_see_one_another() {
    for case in CASES {
        let (model, batch) = (adapted(case), GoldenBatch::load(case));
        let together = to_vec(&model.logits(&batch.input_ids, &batch.lengths).unwrap());
        let (mut alone, mut loss) = (vec![], 0.0);
        let (mut summed, mut joint) = (Gradients::default(), Gradients::default());
        for example in batch.examples() {
            let lengths = [example.input_ids.len()];
            alone.extend(to_vec(&model.logits(&example.input_ids, &lengths).unwrap()));
            let sequences = Sequences { input_ids: &example.input_ids, labels: &example.labels, lengths: &lengths };
            loss += model.loss_and_gradients(sequences, 1.0, true, None, &mut summed).unwrap();
        }
        // Products of f32 with another number of rows are rounded otherwise.
        assert!(max_difference(&together, &alone) <= 2e-5, "{case}: {}", max_difference(&together, &alone));
        let whole = model.loss_and_gradients(batch.sequences(), 1.0, true, None, &mut joint).unwrap();
        assert!((whole / loss - 1.0).abs() <= 1e-6, "{case}");
        for (name, gradient) in joint.iter() {
            let error = relative_error(&to_vec(gradient), &to_vec(summed.get(name).unwrap()));
            assert!(error <= 1e-5, "{case} {name}: {error}");
        }
    }
}

/// How far half precision is from f32, in logits and LoRA gradients: (max |difference|, largest relative error).
fn distance(case: &str, golden: &str) -> (f64, f64) {
    let (expected, batch) = (Golden::expected(case), GoldenBatch::load(case));
    let logits = batch.live(&expected.values(&format!("{golden}.logits")), spec(case).vocab_size);
    let exact = batch.live(&expected.values("lora.logits"), spec(case).vocab_size);
    let gradients = expected
        .with_prefix("lora.grad.")
        .map(|(name, exact)| relative_error(&expected.values(&format!("{golden}.grad.{name}")), &to_vec(exact)));
    (max_difference(&logits, &exact), gradients.fold(0.0, f64::max))
}

/// bf16 has 8 bits of mantissa, so two correct computations differ by their rounding; no fixed number says by how much.
/// PyTorch's own distance between bf16 and f32 does: ours may not be further from f32 than 1.5 times that. f16 has 3
/// bits more and must be at least four times nearer.
#[test]
fn half_precision_is_as_near_to_f32_as_pytorch_s() {
    for case in CASES {
        let (golden, batch) = (Golden::expected(case), GoldenBatch::load(case));
        let (logit_limit, gradient_limit) = distance(case, "bf16");
        for (dtype, share) in [(DType::BF16, 1.5), (DType::F16, 0.25)] {
            let model = adapted_in(case, dtype);
            let logits = model.logits(&batch.input_ids, &batch.lengths).unwrap();
            assert_eq!(logits.dtype(), DType::F32);
            let exact = batch.live(&golden.values("lora.logits"), spec(case).vocab_size);
            let difference = max_difference(&to_vec(&logits), &exact);
            assert!(
                difference > 0.0 && difference <= share * logit_limit,
                "{case} {dtype:?}: {difference} {logit_limit}"
            );

            let mut gradients = Gradients::default();
            let scale = 1.0 / batch.label_tokens() as f64;
            let sum = model.loss_and_gradients(batch.sequences(), scale, true, None, &mut gradients).unwrap();
            assert!((sum * scale / golden.values("lora.loss64")[0] - 1.0).abs() <= 1e-2, "{case} {dtype:?}");
            let worst = golden.with_prefix("lora.grad.").map(|(name, exact)| {
                let got = gradients.get(&format!("{name}.weight")).unwrap();
                assert_eq!(got.dtype(), DType::F32);
                relative_error(&to_vec(got), &to_vec(exact))
            });
            let worst = worst.fold(0.0, f64::max);
            assert!(worst <= share * gradient_limit, "{case} {dtype:?}: {worst} {gradient_limit}");
        }
    }
}

/// Full tuning in bf16: the trained weights stay f32 and their gradients are those of f32 up to rounding.
#[test]
fn full_tuning_in_half_precision_keeps_f32_parameters() {
    for case in ["llama_gqa", "qwen2", "gemma3_text"] {
        let (golden, batch) = (Golden::expected(case), GoldenBatch::load(case));
        let model = base_in(case, true, DType::BF16);
        let mut gradients = Gradients::default();
        let scale = 1.0 / batch.label_tokens() as f64;
        model.loss_and_gradients(batch.sequences(), scale, true, None, &mut gradients).unwrap();
        for (name, expected) in golden.with_prefix("full.grad.") {
            assert_eq!(model.parameters()[name].dtype(), DType::F32);
            let error = relative_error(&to_vec(gradients.get(name).unwrap()), &to_vec(expected));
            assert!(error <= 0.1, "{case} {name}: {error}");
        }
    }
}

//! What the families add to the parity tests: rope scalings, half precision, and several sequences in a batch.
//!
//! Goldens: `tests/fixtures/make/goldens.py`. Run with `ASFT_OPS=generic` too: the code that an accelerator runs.

use crate::support::files::fixture;
use crate::support::goldens::*;
use crate::support::tensors::{max_difference, relative_error, to_vec};
use asft::adapter::LoraOptions;
use asft::checkpoint::{Checkpoint, save_tensors};
use asft::model::{Decoder, GenerateOptions, Gradients, ModelSpec, Sequences, Weights};
use asft::names::Targets;
use candle_core::{DType, Device, Tensor};
use indicatif::ProgressBar;
use std::collections::BTreeMap;

#[test]
fn both_dialects_are_one_model() {
    let with_both = CASES.into_iter().filter(|case| fixture(case).join("model4").is_dir());
    let compared = with_both.map(|case| {
        let dir = fixture(case);
        let [five, four] = ["model", "model4"].map(|part| ModelSpec::load(&dir.join(part)).unwrap());
        assert_eq!(five, four, "{case}");
    });
    assert_eq!(compared.count(), 18);
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
        // Products of f32 with another number of rows are rounded otherwise: by some 1e-6 of the whole, and by 4e-6 of the largest.
        let (error, largest) =
            (relative_error(&together, &alone), alone.iter().fold(0f64, |largest, x| largest.max(x.abs())));
        assert!(error <= 3e-6, "{case}: {error}");
        assert!(max_difference(&together, &alone) <= 5e-6 * largest, "{case}: {}", max_difference(&together, &alone));
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

/// Experts in one tensor a layer, as transformers 5 holds them, are the model whose experts lie one by one.
#[test]
fn fused_experts_are_the_same_model() {
    let (one_by_one, scratch) = (base_checkpoint("qwen3_moe"), tempfile::tempdir().unwrap());
    let mut tensors = BTreeMap::new();
    for name in one_by_one.names().filter(|name| !name.contains(".experts.")) {
        tensors.insert(name.to_string(), one_by_one.tensor(name, DType::F32, &Device::Cpu).unwrap());
    }
    for layer in [1, 2] {
        let prefix = format!("model.layers.{layer}.mlp.experts");
        let read = |expert: usize, part: &str| {
            one_by_one.tensor(&format!("{prefix}.{expert}.{part}.weight"), DType::F32, &Device::Cpu).unwrap()
        };
        let both = (0..6).map(|expert| Tensor::cat(&[read(expert, "gate_proj"), read(expert, "up_proj")], 0).unwrap());
        let down = (0..6).map(|expert| read(expert, "down_proj"));
        for (name, parts) in [("gate_up_proj", both.collect::<Vec<_>>()), ("down_proj", down.collect())] {
            tensors.insert(format!("{prefix}.{name}"), Tensor::stack(&parts, 0).unwrap());
        }
    }
    save_tensors(&scratch.path().join("model.safetensors"), &tensors).unwrap();
    let fused = Checkpoint::open(scratch.path()).unwrap();
    assert_eq!(fused.names().collect::<Vec<_>>(), one_by_one.names().collect::<Vec<_>>());
    for name in one_by_one.names() {
        assert_eq!(fused.read_f32(name).unwrap(), one_by_one.read_f32(name).unwrap(), "{name}");
    }
}

#[test]
fn experts_and_routers_as_targets_are_refused_with_the_reason() {
    let targets = |name: &str| {
        let target_modules = Targets::List(vec!["q_proj".to_string(), name.to_string()]);
        LoraOptions { target_modules, ..Default::default() }.targets(&spec("qwen3_moe"))
    };
    for name in ["experts.0.up_proj", "mlp.gate", "gate", "mlp.experts"] {
        let error = targets(name).unwrap_err();
        assert!(error.to_string().contains("take no adapters"), "{name}: {error:#}");
        assert_eq!(asft::error::exit_code(&error), 2);
    }
    // The first layer has an MLP.
    assert_eq!(targets("gate_proj").unwrap().len(), 4);
    assert!(targets("gte_proj").unwrap_err().to_string().contains("did you mean"));
}

/// Beyond the original context LongRoPE has other frequencies, for the positions before it too: cached keys must not stay.
#[test]
fn decoding_past_the_original_context_equals_the_whole_sequence() {
    let spec = ModelSpec::load(&fixture("rope").join("phi3_longrope")).unwrap();
    let place = (device(), DType::F32);
    let weights = base_checkpoint("phi3");
    let model = Decoder::load(&spec, &weights, place, Weights::Frozen, &ProgressBar::hidden()).unwrap();
    let ids = GoldenBatch::load("phi3").input_ids;
    // The original context is 16 positions.
    let prompts = [ids[..10].to_vec(), ids[10..15].to_vec()];
    let options = GenerateOptions { max_new_tokens: 14, temperature: 0.0, top_p: 1.0, seed: 0, stop_ids: vec![] };
    let keep = |index: usize, answer: Vec<u32>| {
        let mut ids = prompts[index].clone();
        for token in answer {
            let logits = to_vec(&model.logits(&ids, &[ids.len()])?);
            let last = &logits[logits.len() - spec.vocab_size..];
            let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
            assert_eq!(token, best as u32, "prompt {index}, position {}", ids.len());
            ids.push(token);
        }
        Ok(())
    };
    model.generate_all(&prompts, 2, &options, keep).unwrap();
}

/// A golden is worth what it notices: each feature of the newer families switched off moves the logits far beyond the tolerance.
#[test]
fn every_feature_switched_off_shows_in_its_golden() {
    type Off = fn(&mut ModelSpec);
    let no_window: Off = |spec| spec.layers.iter_mut().for_each(|layer| layer.window = None);
    let features: [(&str, &str, Off); 19] = [
        ("smollm3", "layers without a rotation", |spec| spec.layers[1].rope = Some(0)),
        ("smollm3", "window", no_window),
        ("granite", "embedding_multiplier", |spec| spec.embedding_scale = None),
        ("granite", "attention_multiplier", |spec| spec.attention_scale = (spec.head_dim as f64).powf(-0.5)),
        ("granite", "residual_multiplier", |spec| spec.residual_scale = None),
        ("granite", "logits_scaling", |spec| spec.logit_scale = None),
        ("olmo3", "window", no_window),
        ("olmo3", "a rope for full attention", |spec| spec.layers[1].rope = Some(1)),
        ("olmo3", "a rope for windows", |spec| spec.layers[0].rope = Some(0)),
        ("phi3", "partial rotation", |spec| spec.ropes[0].partial = 1.0),
        ("phi3", "window", no_window),
        ("glm4", "partial rotation", |spec| spec.ropes[0].partial = 1.0),
        ("glm4", "pairs of neighbours", |spec| spec.ropes[0].interleaved = false),
        ("qwen3_moe", "normalised weights", |spec| spec.experts.as_mut().unwrap().normalised = false),
        ("qwen3_moe", "two experts", |spec| spec.experts.as_mut().unwrap().per_token = 1),
        ("qwen3_moe_raw", "weights as they are", |spec| spec.experts.as_mut().unwrap().normalised = true),
        ("qwen3_moe_raw", "window", no_window),
        ("gemma3_text", "a rope for windows", |spec| spec.layers[0].rope = Some(0)),
        ("qwen3", "theta", |spec| spec.ropes[0].theta = 10_000.0),
    ];
    for (case, feature, off) in features {
        let (mut changed, batch) = (spec(case), GoldenBatch::load(case));
        off(&mut changed);
        let place = (device(), DType::F32);
        let weights = base_checkpoint(case);
        let model = Decoder::load(&changed, &weights, place, Weights::Frozen, &ProgressBar::hidden()).unwrap();
        let logits = to_vec(&model.logits(&batch.input_ids, &batch.lengths).unwrap());
        let expected = batch.live(&Golden::expected(case).values("base.logits"), changed.vocab_size);
        let difference = max_difference(&logits, &expected);
        assert!(difference > 1e-2, "{case} without {feature}: {difference}");
    }
}

/// Kernels split rows and heads among threads, never a sum.
#[test]
fn the_number_of_threads_changes_no_bit() {
    if !device().is_cpu() {
        return;
    }
    for case in CASES {
        let (adapted, trained, batch) = (adapted(case), base(case, true), GoldenBatch::load(case));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let of = |model: &Decoder| {
                    let mut gradients = Gradients::default();
                    let loss = model.loss_and_gradients(batch.sequences(), 1.0, true, None, &mut gradients).unwrap();
                    (loss, gradients.iter().map(|(name, g)| (name.to_string(), to_vec(g))).collect::<Vec<_>>())
                };
                (to_vec(&adapted.logits(&batch.input_ids, &batch.lengths).unwrap()), of(&adapted), of(&trained))
            })
        };
        assert!(run(1) == run(3), "{case}");
    }
}

/// A mixture whose experts are not all there, or not of one size.
#[test]
fn missing_and_misshapen_experts_are_named() {
    for case in ["qwen3_moe", "qwen3_5_moe_text"] {
        let (stored, scratch) = (base_checkpoint(case), tempfile::tempdir().unwrap());
        let (gone, odd) =
            ("model.layers.1.mlp.experts.3.down_proj.weight", "model.layers.2.mlp.experts.0.up_proj.weight");
        let mut tensors = BTreeMap::new();
        for name in stored.names().filter(|name| ![gone, "model.layers.2.mlp.gate.weight"].contains(name)) {
            let tensor = stored.tensor(name, DType::F32, &Device::Cpu).unwrap();
            tensors
                .insert(name.to_string(), if name == odd { tensor.t().unwrap().contiguous().unwrap() } else { tensor });
        }
        save_tensors(&scratch.path().join("model.safetensors"), &tensors).unwrap();
        let (weights, place) = (Checkpoint::open(scratch.path()).unwrap(), (device(), DType::F32));
        let error = Decoder::load(&spec(case), &weights, place, Weights::Frozen, &ProgressBar::hidden()).err().unwrap();
        assert_eq!(asft::error::exit_code(&error), 2);
        let text = format!("{error:#}");
        for needle in [
            format!("{gone} is missing"),
            "model.layers.2.mlp.gate.weight is missing".into(),
            format!("{odd} has shape"),
        ] {
            assert!(text.contains(&needle), "{case} {needle}: {text}");
        }
    }
}

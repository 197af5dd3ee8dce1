//! Terms of defences on their own samples, on the golden models: against PyTorch's autograd and finite differences.
//!
//! Goldens: `tests/fixtures/make/defences.py`.

use crate::support::files::{fixture, read_json};
use crate::support::goldens::*;
use crate::support::tensors::{norm, relative_error, to_vec};
use asft::checkpoint::Checkpoint;
use asft::config::Settings;
use asft::data::{Before, DataOptions, Dataset, Example, Format, Reading};
use asft::model::{Decoder, Gradients, Weights};
use asft::train::{Activations, Anchor, Defence, DefenceOptions, Kl, SafeGrad};
use candle_core::DType;
use indicatif::ProgressBar;
use std::sync::Arc;

pub const CASES: [&str; 3] = ["llama_gqa", "gemma2", "granite"];

/// Samples as a defence gets them.
pub fn dataset(examples: &[Example]) -> Arc<Dataset> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("own.jsonl");
    let line = |example: &Example| {
        serde_json::json!({"input_ids": example.input_ids, "labels": example.labels}).to_string() + "\n"
    };
    std::fs::write(&path, examples.iter().map(line).collect::<String>()).unwrap();
    let options = DataOptions { format: Format::Tokenized, ..Default::default() };
    let reading =
        Reading { options: &options, before: Before::default(), tokenizer: None, vocab_size: 1000, cache: None };
    Arc::new(reading.load_file(&path, &ProgressBar::hidden()).unwrap())
}

/// The golden prompts: the batch's sequences, cut.
pub fn prompts(case: &str) -> Vec<Example> {
    let lengths = read_json(&fixture("defences").join("case.json"));
    let lengths = lengths["prompts"].as_array().unwrap().iter().map(|length| length.as_u64().unwrap() as usize);
    let cut = |(example, length): (Example, usize)| {
        let input_ids = example.input_ids[..length].to_vec();
        Example { labels: input_ids.iter().map(|&id| i64::from(id)).collect(), input_ids }
    };
    GoldenBatch::load(case).examples().into_iter().zip(lengths).map(cut).collect()
}

pub fn settings(options: &DefenceOptions, checkpointing: bool) -> Settings {
    let mut settings = Settings { defence: options.clone(), ..Settings::default() };
    settings.train.gradient_checkpointing = checkpointing;
    settings
}

/// The defence, ready for a run that begins with `model`.
pub fn ready<D: Defence>(mut defence: D, settings: &Settings, own: Arc<Dataset>, model: &mut Decoder) -> D {
    defence.prepare(Some(own), settings, 10).unwrap();
    defence.start(model).unwrap();
    defence
}

/// A weight of the goldens.
fn weight(name: &str) -> f64 {
    read_json(&fixture("defences").join("case.json"))[name].as_f64().unwrap()
}

fn anchor(batch_size: usize, checkpointing: bool, case: &str, model: &mut Decoder) -> Anchor {
    let weight = weight("weight");
    let options = DefenceOptions { weight, batch_size, ..Default::default() };
    ready(Anchor::new(&options), &settings(&options, checkpointing), dataset(&prompts(case)), model)
}

/// The base with its golden adapter, and dropout, of which terms know nothing.
fn with_dropout(case: &str) -> Decoder {
    let (mut model, mut adapter) = (base(case, false), golden_adapter(case));
    adapter.dropout = 0.3;
    attach(&mut model, &adapter);
    model
}

/// A step's term and its gradients.
fn term(defence: &mut impl Defence, step: usize, model: &mut Decoder) -> (f64, Gradients) {
    let mut gradients = Gradients::default();
    let values = defence.add_to(step, model, &mut gradients).unwrap().unwrap();
    (values.iter().map(|value| value.read().unwrap()).sum(), gradients)
}

/// Asserts that the gradients are the golden ones, all of them and no others; `suffix`: what parameters' names have besides.
#[track_caller]
pub fn same_gradients(gradients: &Gradients, golden: &Golden, prefix: &str, suffix: &str) {
    near_gradients(gradients, golden, prefix, suffix, 1e-4);
}

#[track_caller]
fn near_gradients(gradients: &Gradients, golden: &Golden, prefix: &str, suffix: &str, tolerance: f64) {
    let mut compared = 0;
    for (name, expected) in golden.with_prefix(prefix) {
        let got = to_vec(gradients.get(&format!("{name}{suffix}")).unwrap());
        let error = relative_error(&got, &to_vec(expected));
        assert!(error <= tolerance, "{prefix}{name}: {error}");
        compared += 1;
    }
    assert_eq!(compared, gradients.iter().count(), "{prefix}");
}

/// Asserts that every fourth gradient of a step's term is the slope of its value.
#[track_caller]
fn equals_finite_differences(defence: &mut impl Defence, model: &mut Decoder, case: &str) {
    let (_, gradients) = term(defence, 0, model);
    let parameters: Vec<_> = model.parameters().iter().map(|(name, var)| (name.clone(), var.clone())).collect();
    for (name, var) in parameters.iter().step_by(4) {
        let gradient = gradients.get(name).unwrap();
        let (kept, length) = (var.as_tensor().copy().unwrap(), norm(gradient));
        // Along the gradient itself, where the differences are largest.
        let mut moved = |h: f64| {
            var.set(&(&kept + (gradient * (h / length)).unwrap()).unwrap()).unwrap();
            term(defence, 0, model).0
        };
        let difference = (moved(1e-2) - moved(-1e-2)) / 2e-2;
        var.set(&kept).unwrap();
        assert!((difference / length - 1.0).abs() < 2e-2, "{case} {name}: {difference} {length}");
    }
}

#[test]
fn the_anchor_and_its_gradients_equal_pytorch() {
    let golden = Golden::load(&fixture("defences").join("anchor.safetensors"));
    for case in CASES {
        let mut model = with_dropout(case);
        let expected = golden.values(&format!("{case}.value"))[0];
        // As large as the file, and larger.
        for (batch_size, checkpointing) in [(4, true), (4, false), (9, true)] {
            let mut anchor = anchor(batch_size, checkpointing, case, &mut model);
            let (value, gradients) = term(&mut anchor, 3, &mut model);
            assert!((value / expected - 1.0).abs() < 1e-5, "{case}: {value} {expected}");
            same_gradients(&gradients, &golden, &format!("{case}.grad."), ".weight");
        }
        // Each prompt by itself, in the four steps of a round.
        let mut single = anchor(1, true, case, &mut model);
        let terms: Vec<f64> = (4..8).map(|step| term(&mut single, step, &mut model).0).collect();
        let mean = terms.iter().sum::<f64>() / 4.0;
        assert!((mean / expected - 1.0).abs() < 1e-5, "{case}: {terms:?} {expected}");
        equals_finite_differences(&mut anchor(3, true, case, &mut model), &mut model, case);
    }
}

#[test]
fn the_anchor_of_all_weights_equals_pytorch() {
    let golden = Golden::load(&fixture("defences").join("anchor.safetensors"));
    let unaligned = Checkpoint::open(&fixture("llama_gqa").join("unaligned")).unwrap();
    let place = (device(), DType::F32);
    let mut start =
        Decoder::load(&spec("llama_gqa"), &unaligned, place, Weights::Trained, &ProgressBar::hidden()).unwrap();
    for checkpointing in [true, false] {
        let mut anchor = anchor(8, checkpointing, "llama_gqa", &mut start);
        let (value, gradients) = term(&mut anchor, 0, &mut base("llama_gqa", true));
        let expected = golden.values("full.value")[0];
        assert!((value / expected - 1.0).abs() < 1e-5, "{value} {expected}");
        same_gradients(&gradients, &golden, "full.grad.", "");
    }
}

#[test]
fn the_activation_weighted_term_and_its_gradients_equal_pytorch() {
    let golden = Golden::load(&fixture("defences").join("activations.safetensors"));
    for case in CASES {
        let mut model = with_dropout(case);
        let expected = golden.values(&format!("{case}.value"))[0];
        // Prompts one by one and together; more directions than any input has, and a few.
        for (batch_size, rank) in [(1, 128), (4, 128), (3, 2)] {
            let options = DefenceOptions { weight: weight("weight"), batch_size, rank, ..Default::default() };
            let own = dataset(&prompts(case));
            let mut defence = ready(Activations::new(&options), &settings(&options, true), own, &mut model);
            let (value, gradients) = term(&mut defence, 3, &mut model);
            if rank == 2 {
                // What is left out is positive, too.
                assert!(value > 0.0 && value < expected, "{case}: {value} {expected}");
                equals_finite_differences(&mut defence, &mut model, case);
            } else {
                assert!((value / expected - 1.0).abs() < 1e-5, "{case}: {value} {expected}");
                same_gradients(&gradients, &golden, &format!("{case}.grad."), ".weight");
            }
        }
    }
}

/// What the divergence is weighed with, over batches of up to so many samples.
fn with_rho(batch_size: usize) -> DefenceOptions {
    DefenceOptions { rho: weight("rho"), batch_size, ..Default::default() }
}

#[test]
fn the_divergence_and_its_gradients_equal_pytorch() {
    let golden = Golden::load(&fixture("defences").join("kl.safetensors"));
    for case in CASES {
        let (mut model, samples) = (with_dropout(case), dataset(&GoldenBatch::load(case).examples()));
        let expected = golden.values(&format!("{case}.value"))[0];
        for (batch_size, checkpointing) in [(4, true), (9, false)] {
            let options = with_rho(batch_size);
            let settings = settings(&options, checkpointing);
            let mut kl = ready(Kl::new(&options), &settings, Arc::clone(&samples), &mut model);
            let (value, gradients) = term(&mut kl, 3, &mut model);
            assert!((value / expected - 1.0).abs() < 1e-5, "{case}: {value} {expected}");
            same_gradients(&gradients, &golden, &format!("{case}.grad."), ".weight");
        }
        let options = with_rho(3);
        let mut some = ready(Kl::new(&options), &settings(&options, true), Arc::clone(&samples), &mut model);
        equals_finite_differences(&mut some, &mut model, case);
        // Nothing diverges from the model without its adapter where there is none.
        let mut plain = base(case, false);
        let mut adapter = golden_adapter(case);
        adapter.modules.values_mut().for_each(|module| module.b = module.b.zeros_like().unwrap());
        attach(&mut plain, &adapter);
        assert_eq!(term(&mut some, 0, &mut plain).0, 0.0);
    }
}

#[test]
fn safe_grad_equals_pytorch() {
    let golden = Golden::load(&fixture("defences").join("kl.safetensors"));
    for case in CASES {
        let (mut model, batch, options) = (adapted(case), GoldenBatch::load(case), with_rho(4));
        let settings = settings(&options, true);
        let mut safe_grad = ready(SafeGrad::new(&options), &settings, dataset(&batch.examples()), &mut model);
        for (kind, sign) in [("plain", 1.0), ("negated", -1.0)] {
            let mut gradients = Gradients::default();
            let scale = sign / batch.label_tokens() as f64;
            model.loss_and_gradients(batch.sequences(), scale, true, None, &mut gradients).unwrap();
            safe_grad.add_to(0, &mut model, &mut gradients).unwrap();
            same_gradients(&gradients, &golden, &format!("{case}.{kind}.grad."), ".weight");
        }
    }
}

/// There the gradients of sums go through the layers, and the weights of means are applied last.
#[test]
fn terms_in_f16_are_near_pytorch_s_in_f32() {
    let load = |name: &str| Golden::load(&fixture("defences").join(name));
    let (case, options, mut model) = ("llama_gqa", with_rho(4), adapted_in("llama_gqa", DType::F16));
    let samples = dataset(&GoldenBatch::load(case).examples());
    let mut kl = ready(Kl::new(&options), &settings(&options, true), samples, &mut model);
    let mut anchor = anchor(4, true, case, &mut model);
    let terms = [
        (load("anchor.safetensors"), term(&mut anchor, 0, &mut model)),
        (load("kl.safetensors"), term(&mut kl, 0, &mut model)),
    ];
    for (golden, (value, gradients)) in terms {
        let expected = golden.values("llama_gqa.value")[0];
        assert!((value / expected - 1.0).abs() < 1e-2, "{value} {expected}");
        near_gradients(&gradients, &golden, "llama_gqa.grad.", ".weight", 3e-2);
    }
}

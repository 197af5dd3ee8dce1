//! Every type of GGUF files as the base of training, and what becomes of an adapter that was trained on one.

use crate::support::command::{asft, refused_unwritten, stdout, succeeds, text, train};
use crate::support::files::{fixture, read_json, tiny};
use crate::support::goldens::{GoldenBatch, attach, device};
use crate::support::tensors::{relative_error, to_vec};
use asft::adapter::{self, Adapter, ModuleSize};
use asft::checkpoint::gguf::{Family, Planned, Written, write};
use asft::checkpoint::{Checkpoint, Stored, model_config, save_tensors};
use asft::data::{Batch, collate};
use asft::method::{AsftOptions, Penalize};
use asft::model::{Decoder, ModelSpec, Weights};
use asft::names::Naming;
use asft::quant::Format;
use asft::quant::ggml::GgmlType;
use asft::tokenizer::Tokenizer;
use asft::train::{Penalties, TrainOptions, Trainer};
use candle_core::{DType, Device, Tensor};
use indicatif::ProgressBar;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// A folder of Qwen 3's shape whose rows are whole blocks of every type, with random weights, from which files are made.
fn model(dir: &Path, vocab_size: usize) -> (ModelSpec, Checkpoint) {
    let mut config = read_json(&fixture("qwen3/model/config.json"));
    let sizes = [
        ("hidden_size", 256),
        ("intermediate_size", 256),
        ("head_dim", 64),
        ("num_key_value_heads", 2),
        ("num_hidden_layers", 1),
        ("max_position_embeddings", 512),
        ("vocab_size", vocab_size),
    ];
    for (key, size) in sizes {
        config[key] = json!(size);
    }
    config["layer_types"] = json!(["full_attention"]);
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let spec = ModelSpec::load(dir).unwrap();
    let mut tensors = BTreeMap::new();
    for (number, (name, shape)) in spec.tensors().into_iter().enumerate() {
        // Of the size that weights have where sums stay as large as what is summed.
        let (mean, scale) = if shape.len() == 1 { (1.0, 0.2) } else { (0.0, 1.0 / 16.0) };
        tensors.insert(name, noise(shape, number as u32, mean, scale));
    }
    save_tensors(&dir.join("model.safetensors"), &tensors).unwrap();
    (spec, Checkpoint::open(dir).unwrap())
}

/// Numbers about `mean`, the same on every machine.
fn noise(shape: Vec<usize>, seed: u32, mean: f32, scale: f32) -> Tensor {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| mean + scale * (next() + next() + next())).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The model as a file with all its matrices in one type.
fn file(path: &Path, spec: &ModelSpec, weights: &Checkpoint, kind: GgmlType, tokenizer: Option<&Tokenizer>) {
    let family = Family::of_model_type(&spec.model_type).unwrap();
    let mut metadata = vec![("general.architecture".to_string(), Written::Text(family.architecture.to_string()))];
    metadata.extend(spec.gguf_metadata().unwrap());
    metadata.extend(tokenizer.map(|tokenizer| tokenizer.gguf(spec.vocab_size).unwrap()).into_iter().flatten());
    let (mut planned, mut names) = (vec![], BTreeMap::new());
    for (name, shape) in spec.tensors() {
        let stored = family.name_in_file(&name).unwrap();
        let kind = if shape.len() == 1 { GgmlType::F32 } else { kind };
        names.insert(stored.clone(), name);
        planned.push(Planned { name: stored, shape, kind });
    }
    let blocks = |tensor: &Planned| tensor.kind.quantise(&weights.read_f32(&names[&tensor.name])?);
    write(path, &metadata, &planned, blocks).unwrap();
}

/// A folder with the values that a file stands for.
fn dequantised(file: &Path, dir: &Path) {
    let checkpoint = Checkpoint::open(file).unwrap();
    let values = |name: &str| {
        let shape = checkpoint.info(name).unwrap().shape.clone();
        (name.to_string(), Tensor::from_vec(checkpoint.read_f32(name).unwrap(), shape, &Device::Cpu).unwrap())
    };
    save_tensors(&dir.join("model.safetensors"), &checkpoint.names().map(values).collect()).unwrap();
    let (config, _) = model_config(file).unwrap();
    std::fs::write(dir.join("config.json"), serde_json::to_string(&config).unwrap()).unwrap();
}

/// (loss, gradient norm) of ten steps on weights as they are stored.
fn ten_steps(place: &Path) -> Vec<(f64, f64)> {
    ten_steps_of(place, Weights::Frozen)
}

/// The same on weights that are quantised as they are loaded, or not.
fn ten_steps_of(place: &Path, weights: Weights) -> Vec<(f64, f64)> {
    let (spec, checkpoint) = (ModelSpec::load(place).unwrap(), Checkpoint::open(place).unwrap());
    let hidden = ProgressBar::hidden();
    let mut model = Decoder::load(&spec, &checkpoint, (device(), DType::F32), weights, &hidden).unwrap();
    let parts = ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"];
    let targets: Vec<String> = parts.iter().map(|part| format!("model.layers.0.{part}")).collect();
    let sizes = targets.iter().map(|target| (target.clone(), ModuleSize { rank: 4, alpha: 8 })).collect();
    let modules = adapter::fresh_modules(&spec, &sizes, 3, device()).unwrap();
    let adapter =
        Adapter { modules, use_rslora: false, dropout: 0.0, base: None, revision: None, layout: Naming::Text };
    attach(&mut model, &adapter);
    let asft = AsftOptions { penalize: Penalize::None, ..Default::default() };
    let penalties = Penalties::new(&asft, &targets, None, Some(&adapter), &model).unwrap();
    let options = TrainOptions { learning_rate: 5e-3, ..Default::default() };
    let mut trainer = Trainer::new(model, penalties, &options, true);
    let batches: Vec<Batch> = GoldenBatch::load("qwen3").examples().chunks(2).map(collate).collect();
    let step = |step| trainer.step(step, &batches, 5e-3).unwrap();
    (0..10).map(step).map(|outcome| (outcome.task_loss, outcome.grad_norm)).collect()
}

#[test]
fn ten_steps_on_every_type_are_those_on_the_dequantised_folder() {
    let scratch = tempfile::tempdir().unwrap();
    let (spec, weights) = model(scratch.path(), 97);
    let exact = ten_steps(scratch.path());
    let mut furthest = vec![];
    for kind in GgmlType::ALL {
        let (path, folder) = (scratch.path().join("model.gguf"), tempfile::tempdir().unwrap());
        file(&path, &spec, &weights, kind, None);
        let stored = Checkpoint::open(&path).unwrap().info("model.layers.0.self_attn.q_proj.weight").unwrap().stored;
        assert_eq!(stored, Stored::of_ggml(kind));
        dequantised(&path, folder.path());
        let (got, expected) = (ten_steps(&path), ten_steps(folder.path()));
        for (step, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let errors = [got.0 / expected.0 - 1.0, got.1 / expected.1 - 1.0];
            assert!(errors.iter().all(|e| e.abs() < 1e-4), "{} step {step}: {got:?} {expected:?}", kind.name());
        }
        assert!(got[9].0 < got[0].0, "{}: {got:?}", kind.name());
        furthest.push(got.iter().zip(&exact).map(|(a, b)| (a.0 / b.0 - 1.0).abs()).fold(0.0, f64::max));
    }
    // F32 is the folder itself; the quantisation of all others shows.
    assert!(furthest[0] < 1e-4 && furthest[1..].iter().all(|distance| *distance > 1e-6), "{furthest:?}");
}

/// What `model.quantize` makes of a folder is what a file of that type holds.
#[test]
fn ten_steps_on_a_folder_that_is_quantised_on_load_are_those_on_a_file() {
    let scratch = tempfile::tempdir().unwrap();
    let (spec, weights) = model(scratch.path(), 97);
    let exact = ten_steps(scratch.path());
    for kind in [GgmlType::Q4K, GgmlType::Q8_0] {
        let path = scratch.path().join("model.gguf");
        file(&path, &spec, &weights, kind, None);
        let quantised = Weights::Quantised { format: Format::Ggml(kind), head: true };
        let (got, expected) = (ten_steps_of(scratch.path(), quantised), ten_steps(&path));
        for (step, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let errors = [got.0 / expected.0 - 1.0, got.1 / expected.1 - 1.0];
            assert!(errors.iter().all(|e| e.abs() < 1e-5), "{} step {step}: {got:?} {expected:?}", kind.name());
        }
        assert!(got[9].0 < got[0].0 && got[0] != exact[0], "{}: {got:?}", kind.name());
    }
}

#[test]
fn an_adapter_of_a_quantised_file_is_merged_into_it_on_request() {
    let scratch = tempfile::tempdir().unwrap();
    let place = |name: &str| scratch.path().join(name);
    let tokenizer = Tokenizer::load(&tiny("aligned")).unwrap();
    let (spec, weights) = model(scratch.path(), 448);
    let base = place("base.gguf");
    file(&base, &spec, &weights, GgmlType::Q4K, Some(&tokenizer));
    // The tokenizer is the file's own.
    let aligned = format!("model.aligned={}", base.display());
    let run = place("run");
    let sets = [&aligned, "asft.penalize=none", "train.max_steps=3", "train.batch_size=2", "train.learning_rate=0.05"];
    succeeds(train(&run, &sets, &["-q"]));
    let (out, adapter) = (place("merged"), run.join("adapter"));
    let merge = |more: &[&str]| {
        let mut command = asft(&["merge", "--model", text(&base), "--adapter", text(&run), "--out", text(&out)]);
        command.args(more);
        command
    };
    refused_unwritten(merge(&[]), &out, &["base.gguf are quantised", "--dequantize"]);
    let told = succeeds(merge(&["--dequantize", "--dtype", "f32"]));
    assert!(told.contains("keeps the error of the quantised weights"), "{told}");
    let (merged, quantised) = (Checkpoint::open(&out).unwrap(), Checkpoint::open(&base).unwrap());
    let trained = adapter::load(&adapter, device()).unwrap();
    for name in quantised.names() {
        let wide = |checkpoint: &Checkpoint| -> Vec<f64> {
            checkpoint.read_f32(name).unwrap().into_iter().map(f64::from).collect()
        };
        let mut expected = wide(&quantised);
        if let Some(module) = name.strip_suffix(".weight").and_then(|module| trained.modules.get(module)) {
            let update = (module.b.matmul(&module.a).unwrap() * trained.scale(module)).unwrap();
            expected.iter_mut().zip(to_vec(&update)).for_each(|(value, update)| *value += update);
        }
        assert!(relative_error(&wide(&merged), &expected) < 1e-6, "{name}");
    }
    let answer = |arguments: &[&str]| {
        let fixed = ["generate", "--prompt", "hi", "--max-new-tokens", "8", "--dtype", "f32", "--model"];
        stdout(asft(&fixed).args(arguments))
    };
    let expected = answer(&[text(&base), "--adapter", text(&adapter)]);
    assert_eq!(answer(&[text(&out)]), expected);
    assert_ne!(answer(&[text(&base)]), expected);
}

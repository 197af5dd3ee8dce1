//! Quantised bases: against PyTorch with what bitsandbytes makes of the weights, and whole runs.

use crate::support::command::{asft, evaluation, json, refused, refused_unwritten, stdout, succeeds, train};
use crate::support::files::{copy_files, fixture, read_json};
use crate::support::goldens::*;
use crate::support::runs::{interrupt, metrics, same_run};
use crate::support::tensors::{max_difference, relative_error, to_vec};
use asft::adapter::{self, Adapter, BaseIdentity};
use asft::checkpoint::Checkpoint;
use asft::data::{Batch, collate};
use asft::method::{AsftOptions, Penalize};
use asft::model::{Decoder, Gradients, ModelSpec, Weights};
use asft::quant::{Format, Kind};
use asft::train::{Penalties, TrainOptions, Trainer};
use candle_core::{DType, Device, Tensor};
use indicatif::ProgressBar;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const NF4: Weights = Weights::Quantised { format: Format::FourBit(Kind::Nf4), head: false };

/// A case's base with quantised linears, and its golden adapter.
fn quantised(case: &str) -> Decoder {
    let place = (device(), DType::F32);
    let mut model = Decoder::load(&spec(case), &base_checkpoint(case), place, NF4, &ProgressBar::hidden()).unwrap();
    attach(&mut model, &golden_adapter(case));
    model
}

fn golden(case: &str) -> Golden {
    Golden::load(&fixture(case).join("nf4.safetensors"))
}

/// Compares logits, loss and every adapter's gradients with a golden; returns the logits that it expects.
fn check_gradients(golden: &Golden, batch: &GoldenBatch, model: &Decoder, what: &str) -> Vec<f64> {
    let logits = to_vec(&model.logits(&batch.input_ids, &batch.lengths).unwrap());
    let expected_logits = batch.live(&golden.values("lora.logits"), model.spec().vocab_size);
    assert!(max_difference(&logits, &expected_logits) <= 1e-4, "{what}");
    let scale = 1.0 / batch.label_tokens() as f64;
    for checkpointing in [true, false] {
        let mut gradients = Gradients::default();
        let sum = model.loss_and_gradients(batch.sequences(), scale, checkpointing, None, &mut gradients).unwrap();
        assert!((sum * scale / golden.values("lora.loss64")[0] - 1.0).abs() <= 1e-5, "{what}");
        let mut compared = 0;
        for (name, expected) in golden.with_prefix("lora.grad.") {
            let got = to_vec(gradients.get(&format!("{name}.weight")).unwrap());
            let error = relative_error(&got, &to_vec(expected));
            assert!(error <= 1e-4, "{what} {name}: {error}");
            compared += 1;
        }
        assert_eq!(compared, model.parameters().len());
    }
    expected_logits
}

/// Compares ten steps with a golden's, and the adapter that they end with.
fn check_steps(golden: &Golden, adapter: &Adapter, model: Decoder, batch: &GoldenBatch, what: &str) {
    let targets: Vec<String> = adapter.modules.keys().cloned().collect();
    let asft = AsftOptions { penalize: Penalize::None, ..Default::default() };
    let penalties = Penalties::new(&asft, &targets, None, Some(adapter), &model).unwrap();
    let options = TrainOptions { learning_rate: 5e-3, weight_decay: 0.01, ..Default::default() };
    let mut trainer = Trainer::new(model, penalties, &options, false);
    let batches: Vec<Batch> = batch.examples().chunks(2).map(collate).collect();
    let (losses, norms) = (golden.values("curve.task_loss"), golden.values("curve.grad_norm"));
    for (step, (loss, norm)) in losses.into_iter().zip(norms).enumerate() {
        let outcome = trainer.step(step, &batches, 5e-3).unwrap();
        for (name, got, expected) in [("loss", outcome.task_loss, loss), ("norm", outcome.grad_norm, norm)] {
            assert!((got / expected - 1.0).abs() <= 1e-4, "{what} {name} of step {step}: {got} {expected}");
        }
    }
    check_end(golden, &adapter.with_values(trainer.model.parameters()).unwrap(), what);
}

#[test]
fn logits_loss_and_gradients_equal_pytorch_with_the_dequantised_weights() {
    for case in CASES {
        let batch = GoldenBatch::load(case);
        let expected = check_gradients(&golden(case), &batch, &quantised(case), case);
        // The quantisation shows: with the dense weights the logits are others.
        let dense = to_vec(&adapted(case).logits(&batch.input_ids, &batch.lengths).unwrap());
        assert!(max_difference(&dense, &expected) > 1e-2, "{case}");
    }
}

#[test]
fn ten_steps_equal_pytorch_with_the_dequantised_weights() {
    for case in CASES {
        check_steps(&golden(case), &golden_adapter(case), quantised(case), &GoldenBatch::load(case), case);
    }
}

/// A base that bitsandbytes' own linears compute with, in transformers and PEFT.
#[test]
fn logits_gradients_and_ten_steps_equal_those_of_bitsandbytes() {
    let dir = fixture("bnb").join("steps");
    let (spec, checkpoint) =
        (ModelSpec::load(&dir.join("model")).unwrap(), Checkpoint::open(&dir.join("model")).unwrap());
    assert!(checkpoint.is_quantised());
    let (golden, batch) = (Golden::load(&dir.join("expected.safetensors")), GoldenBatch::load("llama_gqa"));
    let adapter = adapter::load(&dir.join("adapter"), device()).unwrap();
    let place = (device(), DType::F32);
    let mut model = Decoder::load(&spec, &checkpoint, place, Weights::Frozen, &ProgressBar::hidden()).unwrap();
    attach(&mut model, &adapter);
    check_gradients(&golden, &batch, &model, "bitsandbytes");
    check_steps(&golden, &adapter, model, &batch, "bitsandbytes");
}

/// Trains on a quantised base, resumes to the same bits, and is used: measured on the quantised base, and merged into the
/// full one, which the direction is of too.
#[test]
fn a_run_on_a_quantised_base_trains_resumes_and_is_merged() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, again) = (scratch.path().join("run"), scratch.path().join("again"));
    let sets = ["model.quantize=nf4", "model.quantize_head=true", "output.save_every_steps=8", "train.max_steps=24"];
    let told = succeeds(train(&dir, &sets, &[]));
    assert!(told.contains("--quantize nf4 --quantize-head"), "{told}");
    let rows = metrics(&dir);
    let losses: Vec<f64> = rows.iter().filter_map(|row| row["task_loss"].as_f64()).collect();
    assert!(losses[losses.len() - 1] < 0.7 * losses[0], "{losses:?}");
    assert!(rows.iter().any(|row| row["penalty"].as_f64().is_some_and(|penalty| penalty > 0.0)));
    succeeds(train(&again, &sets, &["-q"]));
    interrupt(&again, "adapter", &[24]);
    succeeds(train(&again, &sets, &["-q", "--resume"]));
    same_run(&dir, &again, "adapter/adapter_model.safetensors");
    refused(train(&again, &["model.quantize_head=false"], &["--resume"]), &["model.quantize_head"]);

    let adapter = dir.join("adapter");
    let loss = |model: &Path, more: &[&str]| {
        let mut command = asft(&["eval", "--json", "--data", "tests/tiny/train.jsonl", "--model"]);
        evaluation(command.arg(model).args(more))["loss"].as_f64().unwrap()
    };
    let (tiny, adapted) = (Path::new("tests/tiny/aligned"), adapter.to_str().unwrap());
    let quantised = loss(tiny, &["--quantize", "nf4", "--adapter", adapted]);
    assert!(quantised < 0.7 * loss(tiny, &["--quantize", "nf4"]));
    assert!(loss(tiny, &["--quantize", "nf4"]) != loss(tiny, &[]));
    let merged = scratch.path().join("merged");
    let mut command = asft(&["merge", "--model", "tests/tiny/aligned", "--adapter", adapted, "--out"]);
    succeeds(command.arg(&merged));
    assert!((loss(&merged, &[]) / loss(tiny, &["--adapter", adapted]) - 1.0).abs() < 1e-3);
    let prompt = ["--prompt", "What is the opposite of hot?", "--max-new-tokens", "8"];
    let mut command = asft(&["generate", "--quantize", "nf4", "--model", "tests/tiny/aligned", "--adapter", adapted]);
    assert!(!stdout(command.args(prompt)).trim().is_empty());
}

#[test]
fn what_cannot_be_quantised_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("run");
    let refusal = |sets: &[&str], needles: &[&str]| {
        refused_unwritten(train(&dir, sets, &[]), &dir, needles);
    };
    refusal(&["model.quantize=nf4", "train.method=full"], &["`model.quantize`", "weights that train"]);
    refusal(&["model.quantize_head=true"], &["`model.quantize_head`", "without `model.quantize`"]);
    refusal(&["model.quantize=int8"], &["model.quantize", "\"nf4\", \"q8_0\" or \"q4_k\""]);
    let eval = |more: &[&str]| {
        let mut command = asft(&["eval", "--model", "tests/tiny/aligned", "--data", "x.jsonl"]);
        command.args(more);
        command
    };
    refused(eval(&["--quantize-head"]), &["--quantize"]);
    // The names of the config.
    refused(eval(&["--quantize", "int8"]), &["[possible values: nf4, q8_0, q4_k]"]);
}

#[test]
fn a_plan_knows_the_size_of_quantised_weights() {
    let scratch = tempfile::tempdir().unwrap();
    let weights = |sets: &[&str]| {
        let forecast: Value = json(train(&scratch.path().join("run"), sets, &["--dry-run", "--json"]));
        forecast["memory_bytes"]["weights"].as_f64().unwrap()
    };
    let (dense, linears) = (weights(&[]), weights(&["model.quantize=nf4"]));
    let all = weights(&["model.quantize=nf4", "model.quantize_head=true"]);
    // 4.13 bits a value instead of 32, and a table for each matrix, which shows at this size.
    assert!(all < 0.3 * dense && linears < dense && all < linears, "{dense} {linears} {all}");
}

/// llama_gqa's base as transformers and bitsandbytes save it, opened.
fn saved_by_bitsandbytes(kind: &str) -> (ModelSpec, Checkpoint) {
    let dir = fixture("bnb").join(kind);
    (ModelSpec::load(&dir).unwrap(), Checkpoint::open(&dir).unwrap())
}

#[test]
fn a_folder_saved_by_bitsandbytes_is_a_base() {
    for kind in ["nf4", "fp4"] {
        let (spec, checkpoint) = saved_by_bitsandbytes(kind);
        let expected = Golden::load(&fixture("bnb").join(kind).join("expected.safetensors"));
        assert!(checkpoint.is_quantised() && checkpoint.names().eq(base_checkpoint("llama_gqa").names()));
        let mut compared = 0;
        for (name, values) in expected.with_prefix("").filter(|(name, _)| name.ends_with(".values")) {
            let name = name.trim_end_matches(".values");
            assert_eq!(checkpoint.info(name).unwrap().shape, values.dims());
            let exact: Vec<f32> = values.flatten_all().unwrap().to_vec1().unwrap();
            assert!(checkpoint.read_f32(name).unwrap() == exact, "{kind} {name}");
            compared += 1;
        }
        assert_eq!(compared, 7);
        let place = (device(), DType::F32);
        let mut model = Decoder::load(&spec, &checkpoint, place, Weights::Frozen, &ProgressBar::hidden()).unwrap();
        attach(&mut model, &golden_adapter("llama_gqa"));
        let batch = GoldenBatch::load("llama_gqa");
        let logits = to_vec(&model.logits(&batch.input_ids, &batch.lengths).unwrap());
        let expected = batch.live(&expected.values("lora.logits"), spec.vocab_size);
        assert!(max_difference(&logits, &expected) <= 1e-4, "{kind}");
        // Codes, scales and the rest are part of what the weights are.
        let hash = checkpoint.content_hash(["model.layers.0.mlp.up_proj.weight"]).unwrap();
        assert_eq!(hash, saved_by_bitsandbytes(kind).1.content_hash(["model.layers.0.mlp.up_proj.weight"]).unwrap());
    }
}

/// What the codes stand for depends on the state beside them too.
#[test]
fn weights_that_differ_in_their_state_alone_have_other_hashes() {
    const WEIGHT: &str = "model.layers.1.self_attn.k_proj.weight";
    let state = format!("{WEIGHT}.quant_state.bitsandbytes__nf4");
    let mut tensors = candle_core::safetensors::load(fixture("bnb/nf4/model.safetensors"), &Device::Cpu).unwrap();
    let text = String::from_utf8(tensors[&state].to_vec1::<u8>().unwrap()).unwrap();
    let changed = text.replace("bfloat16", "float32");
    assert!(changed != text);
    tensors.insert(state, Tensor::new(changed.as_bytes(), &Device::Cpu).unwrap());
    let dir = tempfile::tempdir().unwrap();
    candle_core::safetensors::save(&tensors, dir.path().join("model.safetensors")).unwrap();
    let hash = |checkpoint: &Checkpoint| checkpoint.content_hash([WEIGHT]).unwrap();
    assert!(hash(&Checkpoint::open(dir.path()).unwrap()) != hash(&saved_by_bitsandbytes("nf4").1));
}

#[test]
fn a_damaged_folder_of_bitsandbytes_is_refused_by_name() {
    const WEIGHT: &str = "model.layers.1.self_attn.k_proj.weight";
    let source = candle_core::safetensors::load(fixture("bnb/nf4/model.safetensors"), &Device::Cpu).unwrap();
    let refusal = |change: &dyn Fn(&mut HashMap<String, Tensor>)| {
        let dir = tempfile::tempdir().unwrap();
        let mut tensors = source.clone();
        change(&mut tensors);
        candle_core::safetensors::save(&tensors, dir.path().join("model.safetensors")).unwrap();
        let Err(error) = Checkpoint::open(dir.path()) else { panic!("it opens") };
        assert_eq!(asft::error::exit_code(&error), 2);
        format!("{error:#}")
    };
    let bytes = |text: &str| Tensor::new(text.as_bytes(), &Device::Cpu).unwrap();
    let name = |end: &str| format!("{WEIGHT}.{end}");
    let state = name("quant_state.bitsandbytes__nf4");
    let missing = refusal(&|t| drop(t.remove(&name("nested_absmax"))));
    assert!(missing.contains(WEIGHT) && missing.contains(".nested_absmax is missing"), "{missing}");
    let short = refusal(&|t| drop(t.insert(name("absmax"), bytes("abc"))));
    assert!(short.contains(".absmax has 3 values of type U8, expected"), "{short}");
    let codes = refusal(&|t| drop(t.insert(WEIGHT.to_string(), bytes("abc"))));
    assert!(codes.contains("its codes have 3 bytes, expected"), "{codes}");
    assert!(refusal(&|t| drop(t.insert(state.clone(), bytes("{")))).contains("not the JSON of a quant_state"));
    let vast = "{\"blocksize\": 64, \"dtype\": \"float32\", \"shape\": [4294967296, 4294967296]}";
    assert!(refusal(&|t| drop(t.insert(state.clone(), bytes(vast)))).contains("the shape [4294967296, 4294967296]"));
    let other = refusal(&|t| drop(t.insert("model.layers.0.mlp.up_proj.qweight".to_string(), bytes("abc"))));
    assert!(other.contains("GPTQ or AWQ") && other.contains("model.quantize"), "{other}");
}

/// The merged folder of a quantised base is a plain one, in the type of its embedding.
#[test]
fn a_quantised_base_is_merged_only_on_request() {
    let scratch = tempfile::tempdir().unwrap();
    let (base, out) = (fixture("bnb/nf4"), scratch.path().join("merged"));
    let merge = |more: &[&str]| {
        let mut command = asft(&["merge", "--adapter"]);
        command.arg(fixture("llama_gqa/adapter")).arg("--model").arg(&base).arg("--out").arg(&out).args(more);
        command
    };
    refused_unwritten(merge(&[]), &out, &["are quantised", "--dequantize"]);
    let told = succeeds(merge(&["--dequantize"]));
    assert!(told.contains("keeps the error of the quantised weights"), "{told}");
    let (spec, merged) = (ModelSpec::load(&out).unwrap(), Checkpoint::open(&out).unwrap());
    let config = read_json(&out.join("config.json"));
    assert!(config.get("quantization_config").is_none() && config["dtype"] == "bfloat16", "{config}");
    assert!(
        !merged.is_quantised() && merged.names().all(|name| merged.info(name).unwrap().stored.to_string() == "BF16")
    );
    let load = |spec: &ModelSpec, checkpoint: &Checkpoint| {
        Decoder::load(spec, checkpoint, (device(), DType::F32), Weights::Frozen, &ProgressBar::hidden()).unwrap()
    };
    let (whole, (base_spec, base)) = (load(&spec, &merged), saved_by_bitsandbytes("nf4"));
    let mut adapted = load(&base_spec, &base);
    attach(&mut adapted, &golden_adapter("llama_gqa"));
    let batch = GoldenBatch::load("llama_gqa");
    let logits = |model: &Decoder| to_vec(&model.logits(&batch.input_ids, &batch.lengths).unwrap());
    assert!(relative_error(&logits(&whole), &logits(&adapted)) < 1e-2);
}

/// An adapter that was trained on the quantised weights belongs to the full ones, and to no others.
#[test]
fn an_adapter_of_a_quantised_base_belongs_to_the_full_model() {
    let scratch = tempfile::tempdir().unwrap();
    let place = |name: &str| scratch.path().join(name);
    copy_files(&fixture("llama_gqa/adapter"), &place("adapter"));
    let recorded = BaseIdentity::of(&golden_adapter("llama_gqa"), &saved_by_bitsandbytes("nf4").1).unwrap();
    std::fs::write(place("adapter/asft.json"), recorded.to_json().unwrap()).unwrap();
    let (full, other, out) = (fixture("llama_gqa/model"), place("other"), place("merged"));
    copy_files(&full, &other);
    let weights = candle_core::safetensors::load(full.join("model.safetensors"), &Device::Cpu).unwrap();
    let half: HashMap<String, Tensor> = weights.into_iter().map(|(name, x)| (name, (x * 0.5).unwrap())).collect();
    candle_core::safetensors::save(&half, other.join("model.safetensors")).unwrap();
    let merge = |model: &Path| {
        let mut command = asft(&["merge", "--adapter"]);
        command.arg(place("adapter")).arg("--model").arg(model).arg("--out").arg(&out);
        command
    };
    refused_unwritten(merge(&other), &out, &["trained on other weights"]);
    let told = succeeds(merge(&full));
    assert!(told.contains("was trained on quantised weights that are at most"), "{told}");
    let inspect = |aligned: &Path, unaligned: &Path| {
        let direction = place("d.safetensors");
        let mut command = asft(&["direction", "--target-modules", "q_proj,v_proj,o_proj,down_proj", "--overwrite"]);
        command.arg("--aligned").arg(aligned).arg("--unaligned").arg(unaligned).arg("--out").arg(&direction);
        succeeds(command);
        let mut command = asft(&["inspect", "--adapter"]);
        command.arg(place("adapter")).arg("--direction").arg(&direction);
        command
    };
    assert!(succeeds(inspect(&full, &other)).contains("is taken to belong to them"));
    refused(inspect(&other, &full), &["trained on other weights"]);
    // As near as four bits allow, but on the other side.
    refused(inspect(&fixture("llama_gqa/unaligned"), &full), &["to the unaligned one: they are the latter's"]);

    // One of the weights is not quantised.
    const WEIGHT: &str = "model.layers.0.self_attn.q_proj.weight";
    let load = |path: PathBuf| candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let mut partly = load(fixture("bnb/nf4/model.safetensors"));
    partly.retain(|name, _| !name.starts_with(WEIGHT));
    partly.insert(WEIGHT.to_string(), load(full.join("model.safetensors"))[WEIGHT].clone());
    std::fs::create_dir(place("partly")).unwrap();
    candle_core::safetensors::save(&partly, place("partly/model.safetensors")).unwrap();
    let base = Checkpoint::open(&place("partly")).unwrap();
    let recorded = BaseIdentity::of(&golden_adapter("llama_gqa"), &base).unwrap();
    std::fs::write(place("adapter/asft.json"), recorded.to_json().unwrap()).unwrap();
    succeeds(merge(&full).args(["--overwrite"]));
}

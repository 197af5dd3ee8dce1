//! A full training step of a model of SmolLM2-135M's shape with random weights, against the GEMM rate, and against the
//! time of its own matrix products alone: the same shapes, every layer's own weights, nothing else.

mod support;

use asft::adapter::{Adapter, LoraOptions, fresh_modules};
use asft::checkpoint::{Checkpoint, save_tensors};
use asft::data::{Batch, Example, collate};
use asft::method::{AsftOptions, Penalize};
use asft::model::{Decoder, ModelSpec};
use asft::names::{Targets, resolve_targets};
use asft::ops::linear;
use asft::ops::machine::best;
use asft::train::{Penalties, TrainOptions, Trainer};
use candle_core::{DType, Device, Tensor};
use indicatif::ProgressBar;
use std::path::Path;
use support::{Limits, tensor};

const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": true,
    "rms_norm_eps": 1e-5}"#;
const BATCH: usize = 4;
const LENGTH: usize = 256;

fn main() -> anyhow::Result<()> {
    asft::memory::keep_freed_buffers();
    let limits = Limits::measure();
    let dir = tempfile::tempdir()?;
    let spec = random_model(dir.path())?;
    let batch = [batch(spec.vocab_size)];
    let products = products(&spec)?;
    let tokens = BATCH * LENGTH;
    let linears: usize = shapes(&spec).iter().map(|(d_out, d_in)| d_out * d_in).sum();
    println!(
        "{BATCH} x {LENGTH} tokens; the products of a forward and a backward pass alone: {:.0} ms\n",
        products * 1e3
    );
    for (targets, name) in [(list(&["q_proj", "v_proj"]), "q, v"), (Targets::AllLinear, "all linears")] {
        for checkpointing in [false, true] {
            for penalize in [Penalize::None, Penalize::All] {
                let mut trainer = trainer(dir.path(), &spec, &targets, checkpointing, penalize)?;
                let mut step = 0;
                let passes = if checkpointing { 3 } else { 2 };
                let head = spec.vocab_size * spec.hidden_size;
                let flops = 2.0 * (tokens * (linears * passes + head * 2)) as f64;
                let title =
                    format!("{name}{}, penalty {penalize:?}", if checkpointing { ", checkpointing" } else { "" });
                limits.flops(&title, flops, || {
                    trainer.step(step, &batch, 1e-4).expect("a step of finite numbers");
                    step += 1;
                });
            }
        }
    }
    Ok(())
}

fn list(names: &[&str]) -> Targets {
    Targets::List(names.iter().map(ToString::to_string).collect())
}

/// A checkpoint with random weights.
fn random_model(dir: &Path) -> anyhow::Result<ModelSpec> {
    std::fs::write(dir.join("config.json"), CONFIG)?;
    let spec = ModelSpec::load(dir)?;
    let weights = spec.tensors().into_iter().enumerate().map(|(seed, (name, shape))| {
        let scale = if shape.len() == 1 { 1.0 } else { 0.03 };
        Ok((name, (tensor(&shape, seed as u64 + 1) * scale)?))
    });
    save_tensors(&dir.join("model.safetensors"), &weights.collect::<anyhow::Result<_>>()?)?;
    Ok(spec)
}

fn batch(vocab_size: usize) -> Batch {
    let sample = |row: usize| {
        let input_ids: Vec<u32> = (0..LENGTH).map(|i| ((row * LENGTH + i) * 7919 % vocab_size) as u32).collect();
        Example { labels: input_ids.iter().map(|&id| i64::from(id)).collect(), input_ids }
    };
    let samples: Vec<Example> = (0..BATCH).map(sample).collect();
    collate(&samples)
}

fn trainer(
    dir: &Path,
    spec: &ModelSpec,
    targets: &Targets,
    checkpointing: bool,
    penalize: Penalize,
) -> anyhow::Result<Trainer> {
    let checkpoint = Checkpoint::open(dir)?;
    let hidden = ProgressBar::hidden();
    let mut model = Decoder::load(spec, &checkpoint, (&Device::Cpu, DType::F32), false, &hidden)?;
    let modules = resolve_targets(targets, &spec.linear_modules())?;
    let adapter = Adapter {
        modules: fresh_modules(spec, &LoraOptions::default().sizes(&modules)?, 1, &Device::Cpu)?,
        use_rslora: false,
        dropout: 0.0,
        base: None,
        revision: None,
    };
    let (loras, parameters) = adapter.trainable()?;
    model.attach(loras, parameters)?;
    let asft = AsftOptions { penalize, ..Default::default() };
    let penalties = Penalties::new(&asft, &modules, None, Some(&adapter), &model)?;
    let options = TrainOptions { gradient_checkpointing: checkpointing, ..Default::default() };
    Ok(Trainer::new(model, penalties, &options, false))
}

/// (d_out, d_in) of every linear of the blocks.
fn shapes(spec: &ModelSpec) -> Vec<(usize, usize)> {
    spec.linear_modules().iter().filter_map(|module| asft::adapter::module_shape(spec, module)).collect()
}

/// Seconds of one forward and one input-gradient product for every linear and for the head.
fn products(spec: &ModelSpec) -> anyhow::Result<f64> {
    let mut all = shapes(spec);
    all.push((spec.vocab_size, spec.hidden_size));
    let tokens = BATCH * LENGTH;
    let operands: Vec<[Tensor; 3]> = all
        .iter()
        .map(|&(d_out, d_in)| [tensor(&[d_out, d_in], 1), tensor(&[tokens, d_in], 2), tensor(&[tokens, d_out], 3)])
        .collect();
    Ok(best(|| {
        for [weight, x, dy] in &operands {
            drop(linear::forward(x, weight, None));
            drop(linear::backward_input(dy, weight));
        }
    }))
}

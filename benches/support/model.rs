//! A model of SmolLM2-135M's shape with random weights, its adapters and its training step.

use super::tensor;
use asft::adapter::{Adapter, LoraOptions, fresh_modules};
use asft::checkpoint::{Checkpoint, StreamWriter, save_tensors};
use asft::data::{Batch, Example, collate};
use asft::method::direction_file::{self, Directions, Header, Identity};
use asft::method::{AsftOptions, Direction, Penalize};
use asft::model::{Decoder, ModelSpec, Weights};
use asft::names::{Naming, Targets, resolve_targets};
use asft::train::{Penalties, TrainOptions, Trainer};
use candle_core::{DType, Device, Tensor};
use indicatif::ProgressBar;
use std::collections::BTreeMap;
use std::path::Path;

const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": true,
    "rms_norm_eps": 1e-5}"#;

pub fn list(names: &[&str]) -> Targets {
    Targets::List(names.iter().map(ToString::to_string).collect())
}

/// A checkpoint with random weights.
pub fn random_model(dir: &Path) -> anyhow::Result<ModelSpec> {
    std::fs::write(dir.join("config.json"), CONFIG)?;
    let spec = ModelSpec::load(dir)?;
    let weights = spec.tensors().into_iter().enumerate().map(|(seed, (name, shape))| {
        let scale = if shape.len() == 1 { 1.0 } else { 0.03 };
        Ok((name, (tensor(&shape, seed as u64 + 1) * scale)?))
    });
    save_tensors(&dir.join("model.safetensors"), &weights.collect::<anyhow::Result<_>>()?)?;
    Ok(spec)
}

/// Sequences of one length, every token a label.
pub fn batch(vocab_size: usize, sequences: usize, length: usize) -> Batch {
    let sample = |row: usize| {
        let input_ids: Vec<u32> = (0..length).map(|i| ((row * length + i) * 7919 % vocab_size) as u32).collect();
        Example { labels: input_ids.iter().map(|&id| i64::from(id)).collect(), input_ids }
    };
    let samples: Vec<Example> = (0..sequences).map(sample).collect();
    collate(&samples)
}

/// Adapters of rank 8 on `targets`.
pub fn adapter(spec: &ModelSpec, targets: &Targets) -> anyhow::Result<(Vec<String>, Adapter)> {
    let modules = resolve_targets(targets, &spec.linear_modules())?;
    let adapter = Adapter {
        modules: fresh_modules(spec, &LoraOptions::default().sizes(&modules)?, 1, &Device::Cpu)?,
        use_rslora: false,
        dropout: 0.0,
        base: None,
        revision: None,
        layout: Naming::Text,
    };
    Ok((modules, adapter))
}

/// The model in `dir` with adapters on `targets`.
pub fn adapted(dir: &Path, spec: &ModelSpec, adapter: &Adapter) -> anyhow::Result<Decoder> {
    let checkpoint = Checkpoint::open(dir)?;
    let mut model =
        Decoder::load(spec, &checkpoint, (&Device::Cpu, DType::F32), Weights::Frozen, &ProgressBar::hidden())?;
    let (loras, parameters) = adapter.trainable()?;
    model.attach(loras, parameters)?;
    Ok(model)
}

pub fn trainer(
    dir: &Path,
    spec: &ModelSpec,
    targets: &Targets,
    checkpointing: bool,
    penalize: Penalize,
) -> anyhow::Result<Trainer> {
    let (modules, adapter) = adapter(spec, targets)?;
    let model = adapted(dir, spec, &adapter)?;
    let asft = AsftOptions { penalize, ..Default::default() };
    let penalties = Penalties::new(&asft, &modules, None, Some(&adapter), &model)?;
    let options = TrainOptions { gradient_checkpointing: checkpointing, ..Default::default() };
    Ok(Trainer::new(model, penalties, &options, false))
}

/// A direction for every module that keeps this share of what its shape allows. Its columns merely have unit length,
/// which is enough for timing.
pub fn directions(path: &Path, spec: &ModelSpec, modules: &[String], share: f64) -> anyhow::Result<Directions> {
    let mut writer = StreamWriter::create(path)?;
    for module in modules {
        let (d_out, d_in) = asft::adapter::module_shape(spec, module).expect("a module of the model");
        let k = (share * d_out.min(d_in) as f64).round() as usize;
        let unit = |rows: usize| Tensor::full((rows as f32).sqrt().recip(), (rows, k), &Device::Cpu);
        let direction = Direction {
            shape: (d_out, d_in),
            basis: unit(d_out)?.contiguous()?,
            right: Some(unit(d_in)?.contiguous()?),
            eigenvalues: (0..k).map(|i| 0.1 / (i + 1) as f32).collect(),
            v_norm: 1.0,
            residual: 0.0,
        };
        direction_file::write(&direction, module, &mut writer)?;
    }
    let nobody = || Identity { id: "random".into(), revision: None, hash: String::new() };
    let header = Header {
        aligned: nobody(),
        unaligned: nobody(),
        modules: modules.to_vec(),
        kept: ("tolerance".into(), "0".into()),
        module_hashes: modules.iter().map(|module| (module.clone(), String::new())).collect::<BTreeMap<_, _>>(),
    };
    writer.finish(&header.to_metadata()?)?;
    Directions::open(path)
}

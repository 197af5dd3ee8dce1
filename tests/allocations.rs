//! Seen by the allocator: what loading a model holds at its peak, and how many tensors a step makes with the operations
//! for any device, each of which is a kernel launch on a GPU. With the feature `shim`: what a step with the GPU's kernels
//! launches and moves.

#[path = "support/allocator.rs"]
mod allocator;
#[cfg(feature = "shim")]
#[path = "allocations/delta_net.rs"]
mod delta_net;
#[cfg(feature = "shim")]
#[path = "allocations/penalty.rs"]
mod penalty;
#[cfg(feature = "shim")]
#[path = "allocations/plan.rs"]
mod plan;
#[cfg(feature = "shim")]
#[path = "allocations/watched.rs"]
mod watched;

#[cfg(not(feature = "shim"))]
use allocator::LARGE;
use allocator::{ALONE, peak};
use asft::adapter::{Adapter, ModuleSize, fresh_modules};
use asft::checkpoint::{Checkpoint, save_tensors};
use asft::data::{Batch, Example, collate};
use asft::method::{AsftOptions, Penalize};
use asft::model::{Decoder, ModelSpec, Weights};
#[cfg(feature = "shim")]
use asft::ops::traffic::Traffic;
use asft::train::{Penalties, TrainOptions, Trainer};
use candle_core::{DType, Device, Tensor};
use indicatif::ProgressBar;
use std::collections::BTreeMap;
use std::path::Path;
#[cfg(not(feature = "shim"))]
use std::sync::atomic::Ordering::SeqCst;
#[cfg(feature = "shim")]
use std::sync::{MutexGuard, PoisonError};

const HIDDEN: usize = 256;
const VOCABULARY: usize = 16_384;

/// A Llama of 16.8 M parameters with eight layers, half of them in the embedding and the head.
fn write_model(dir: &Path, layers: usize) -> usize {
    let config = serde_json::json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": HIDDEN,
        "intermediate_size": 4 * HIDDEN, "max_position_embeddings": 64, "num_attention_heads": 4,
        "num_key_value_heads": 4, "num_hidden_layers": layers, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "vocab_size": VOCABULARY,
    });
    write(dir, &config)
}

/// A model of zeros stored in bf16; returns its bytes.
fn write(dir: &Path, config: &serde_json::Value) -> usize {
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let spec = ModelSpec::load(dir).unwrap();
    let zeros = |shape: Vec<usize>| Tensor::zeros(shape, DType::BF16, &Device::Cpu).unwrap();
    let tensors: BTreeMap<_, _> = spec.tensors().into_iter().map(|(name, shape)| (name, zeros(shape))).collect();
    save_tensors(&dir.join("model.safetensors"), &tensors).unwrap();
    2 * tensors.values().map(Tensor::elem_count).sum::<usize>()
}

#[test]
fn a_model_is_never_held_in_another_type() {
    let _alone = ALONE.lock().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let model_bytes = write_model(dir.path(), 8);
    let (spec, checkpoint) = (ModelSpec::load(dir.path()).unwrap(), Checkpoint::open(dir.path()).unwrap());
    // The buffer of the reads, the norms in f32, names.
    let slack = 3 << 20;

    let (embedding, held) = peak(|| checkpoint.tensor("model.embed_tokens.weight", DType::BF16, &Device::Cpu).unwrap());
    assert_eq!(embedding.dtype(), DType::BF16);
    let bytes = 2 * HIDDEN * VOCABULARY;
    assert!(held < bytes + slack, "a tensor of {bytes} bytes took {held}");

    for (dtype, size) in [(DType::BF16, 1), (DType::F16, 1), (DType::F32, 2)] {
        let load = || {
            Decoder::load(&spec, &checkpoint, (&Device::Cpu, dtype), Weights::Frozen, &ProgressBar::hidden()).unwrap()
        };
        let (_model, held) = peak(load);
        assert!(held < size * model_bytes + slack, "{dtype:?}: a model of {model_bytes} stored bytes took {held}");
    }
}

/// A step of LoRA on q and v of a model in a folder, with checkpointing and a penalty.
fn trainer_of(dir: &Path, dtype: DType, weights: Weights, dropout: f64, rank: usize) -> Trainer {
    let (spec, checkpoint) = (ModelSpec::load(dir).unwrap(), Checkpoint::open(dir).unwrap());
    let mut model = Decoder::load(&spec, &checkpoint, (&Device::Cpu, dtype), weights, &ProgressBar::hidden()).unwrap();
    let targets = spec.linear_modules().into_iter().filter(|m| m.ends_with("q_proj") || m.ends_with("v_proj"));
    let targets: Vec<String> = targets.collect();
    let sizes = targets.iter().map(|module| (module.clone(), ModuleSize { rank, alpha: 2 * rank })).collect();
    let modules = fresh_modules(&spec, &sizes, 1, &Device::Cpu).unwrap();
    let adapter =
        Adapter { modules, use_rslora: false, dropout, base: None, revision: None, layout: Default::default() };
    let (loras, parameters) = adapter.trainable().unwrap();
    model.attach(loras, parameters).unwrap();
    let asft = AsftOptions { penalize: Penalize::All, ..AsftOptions::default() };
    let penalties = Penalties::new(&asft, &targets, None, Some(&adapter), &model).unwrap();
    Trainer::new(model, penalties, &TrainOptions::default(), dropout > 0.0)
}

/// The same of the model above.
#[cfg(not(feature = "shim"))]
fn trainer(layers: usize, dtype: DType, dropout: f64) -> Trainer {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), layers);
    trainer_of(dir.path(), dtype, Weights::Frozen, dropout, 8)
}

#[cfg(not(feature = "shim"))]
fn batch() -> Batch {
    let example = |length: u32| Example {
        input_ids: (0..length).map(|i| i % 97).collect(),
        labels: (0..length).map(|i| i64::from(i % 89)).collect(),
    };
    collate(&[example(90), example(60)])
}

/// Tensors that one more layer adds to a step.
#[cfg(not(feature = "shim"))]
fn tensors_per_layer(dtype: DType, dropout: f64) -> usize {
    let [two, three] = [2, 3].map(|layers| {
        let (mut trainer, batch) = (trainer(layers, dtype, dropout), [batch()]);
        // The first step makes the optimizer's state.
        let mut step = |step| trainer.step(step, &batch, 1e-4).unwrap();
        step(0);
        let before = LARGE.load(SeqCst);
        step(1);
        LARGE.load(SeqCst) - before
    });
    three - two
}

#[cfg(not(feature = "shim"))]
#[test]
fn a_layer_takes_few_launches() {
    let _alone = ALONE.lock().unwrap();
    // SAFETY: no other thread of this test reads the environment now.
    unsafe { std::env::set_var("ASFT_OPS", "generic") };
    for (dtype, dropout, most) in [(DType::F32, 0.0, 365), (DType::BF16, 0.0, 515), (DType::BF16, 0.05, 545)] {
        let count = tensors_per_layer(dtype, dropout);
        println!("{dtype:?}, dropout {dropout}: {count} tensors a layer and step");
        assert!(
            count <= most,
            "{dtype:?}, dropout {dropout}: a layer makes {count} tensors in a step, at most {most} are expected"
        );
    }
}

/// Alone, with the GPU's kernels by the shim. A test that failed before is no reason for this one to fail.
#[cfg(feature = "shim")]
fn through_kernels() -> MutexGuard<'static, ()> {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: no other thread of this test reads the environment now.
    unsafe { std::env::set_var("ASFT_OPS", "shim") };
    alone
}

/// Samples of so many tokens, each of them a label.
#[cfg(feature = "shim")]
fn samples(lengths: &[u32]) -> [Batch; 1] {
    let sample =
        |length: &u32| Example { input_ids: (0..*length).collect(), labels: (0..i64::from(*length)).collect() };
    [collate(&lengths.iter().map(sample).collect::<Vec<_>>())]
}

/// A step of Qwen2-7B on 8 sequences of 512 tokens, in bf16 with dropout and checkpointing, by a model with an eighth of every
/// size: of tokens, ranks and values of a head too. Its tensors have a 64th of the values, but for some small ones. The penalty's
/// products with a direction are not in it.
#[cfg(feature = "shim")]
#[test]
fn a_step_of_seven_billion_parameters_moves_few_bytes() {
    let _alone = through_kernels();
    let config = serde_json::json!({
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 3584 / 8,
        "intermediate_size": 18_944 / 8, "max_position_embeddings": 64, "num_attention_heads": 28,
        "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": false,
        "vocab_size": 152_064 / 8,
    });
    let [one, two] = [1, 2].map(|layers| second_step(&config, layers, DType::BF16, &[64; 8]));
    assert_predicted("qwen2", one, two);
    let (one, two) = (one.0, two.0);
    let gigabytes = |bytes: u64| (bytes * 64) as f64 / 1e9;
    let (launches, layer) = (two.launches - one.launches, gigabytes(two.bytes() - one.bytes()));
    let rest = gigabytes(one.bytes()) - layer;
    let whole = 28.0 * layer + rest;
    println!("{launches} launches and {layer:.2} GB a layer, {rest:.1} GB besides, {whole:.0} GB a step");
    assert!(launches <= 150, "{launches} launches a layer");
    assert!(whole <= 300.0, "{whole} GB a step");
}

/// What a second step of samples of so many tokens takes of a model with so many layers, counted, and as a dry run predicts it.
#[cfg(feature = "shim")]
fn second_step(config: &serde_json::Value, layers: usize, dtype: DType, lengths: &[u32]) -> (Traffic, [f64; 2]) {
    let (dir, mut config) = (tempfile::tempdir().unwrap(), config.clone());
    config["num_hidden_layers"] = layers.into();
    write(dir.path(), &config);
    let mut trainer = trainer_of(dir.path(), dtype, Weights::Frozen, 0.05, 1);
    let batch = samples(lengths);
    trainer.step(0, &batch, 1e-4).unwrap();
    let before = Traffic::so_far();
    trainer.step(1, &batch, 1e-4).unwrap();
    (Traffic::so_far().since(before), predicted(dir.path(), dtype, lengths))
}

/// Asserts that what the second layer of two adds is what a dry run predicts. The penalty's launches are for all layers together.
#[cfg(feature = "shim")]
fn assert_predicted(what: &str, one: (Traffic, [f64; 2]), two: (Traffic, [f64; 2])) {
    let [launches, bytes] = [0, 1].map(|i| two.1[i] - one.1[i]);
    assert_eq!((two.0.launches - one.0.launches) as f64, launches, "{what}");
    let ratio = bytes / (two.0.bytes() - one.0.bytes()) as f64;
    assert!((ratio - 1.0).abs() < 0.01, "{what}: the predicted bytes of a layer are {ratio} times those counted");
}

/// Layers that differ from those above: with norms after attention and MLP, gate and up in one linear, and a part of each head
/// rotated in pairs of neighbours; with experts in the MLP's place; with norms of values, an input of their own and a factor.
#[cfg(feature = "shim")]
#[test]
fn layers_of_other_kinds_take_what_is_predicted() {
    let _alone = through_kernels();
    let glm4 = serde_json::json!({
        "model_type": "glm4", "architectures": ["Glm4ForCausalLM"], "hidden_act": "silu", "hidden_size": 128,
        "intermediate_size": 256, "max_position_embeddings": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "rms_norm_eps": 1e-6, "attention_bias": true, "tie_word_embeddings": false, "vocab_size": 512,
        "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 1e4, "rope_type": "default"},
    });
    // The weights are zeros, so that a token goes to the first experts: here to all there are.
    let mixture = serde_json::json!({
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_act": "silu", "hidden_size": 128,
        "intermediate_size": 256, "moe_intermediate_size": 64, "num_experts": 3, "num_experts_per_tok": 3,
        "decoder_sparse_step": 1, "norm_topk_prob": true, "max_position_embeddings": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "vocab_size": 512,
    });
    let gemma4 = serde_json::json!({
        "model_type": "gemma4_text", "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "global_head_dim": 32, "vocab_size": 512, "sliding_window": 128,
        "hidden_size_per_layer_input": 64, "vocab_size_per_layer_input": 512,
    });
    for (what, config) in [("glm4", glm4), ("mixture", mixture), ("gemma4", gemma4)] {
        for dtype in [DType::F32, DType::BF16] {
            let [one, two] = [1, 2].map(|layers| second_step(&config, layers, dtype, &[64; 8]));
            assert_predicted(what, one, two);
        }
    }
}

/// A mixture whose experts' rows are added up in two slices, of 2048 tokens and the rest.
#[cfg(feature = "shim")]
#[test]
fn a_mixture_of_many_rows_takes_what_is_predicted() {
    let _alone = through_kernels();
    let [one, two] = [1, 2].map(|layers| second_step(&plan::wide_mixture(), layers, DType::BF16, &[64; 36]));
    assert_predicted("mixture in slices", one, two);
}

/// Launches and bytes of the step above by a dry run, but for the penalty.
#[cfg(feature = "shim")]
fn predicted(model: &Path, dtype: DType, lengths: &[u32]) -> [f64; 2] {
    let forecast = forecast(model, dtype, lengths, "");
    let parts = forecast["prediction"]["parts"].as_object().unwrap().iter().filter(|(part, _)| *part != "penalty");
    let parts: Vec<_> = parts.map(|(_, part)| part.clone()).collect();
    ["launches", "bytes"].map(|key| parts.iter().map(|part| part[key].as_f64().unwrap()).sum())
}

/// A dry run of steps of samples of so many tokens, with dropout and LoRA of rank 1, on a card. `more`: settings of the model.
#[cfg(feature = "shim")]
fn forecast(model: &Path, dtype: DType, lengths: &[u32], more: &str) -> serde_json::Value {
    use asft::config::Settings;
    use asft::train::{Card, dry_run};
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let sample = |length: &u32| {
        let ids: Vec<u32> = (0..*length).collect();
        serde_json::json!({"input_ids": ids, "labels": ids}).to_string() + "\n"
    };
    std::fs::write(dir.join("data.jsonl"), lengths.iter().map(sample).collect::<String>()).unwrap();
    let config = format!(
        "[model]\naligned = {model:?}\ndtype = '{}'\ndevice = 'cuda'\n{more}\n[lora]\nrank = 1\nalpha = 2\ndropout = 0.05\n[asft]\n\
         penalize = 'all'\n[data]\ntrain = {:?}\nformat = 'tokenized'\n[train]\nbatch_size = {}\n[output]\ndir = {:?}\n",
        dtype.as_str(),
        dir.join("data.jsonl"),
        lengths.len(),
        dir.join("run")
    );
    std::fs::write(dir.join("run.toml"), config).unwrap();
    let settings = Settings::load(&dir.join("run.toml"), &[]).unwrap();
    serde_json::to_value(dry_run(&settings, Some(Card::named("h100").unwrap())).unwrap()).unwrap()
}

//! Costs that are counted, not timed: the multiply-adds of a step as experts or tokens grow, and what is held beside what a dry run
//! plans.

#[path = "support/allocator.rs"]
mod allocator;

use allocator::{ALONE, peak};
use asft::adapter::{Adapter, ModuleSize, fresh_modules};
use asft::checkpoint::{Checkpoint, save_tensors};
use asft::config::Settings;
use asft::data::{Batch, Example, collate};
use asft::method::{AsftOptions, Penalize};
use asft::model::{Decoder, ModelSpec, Weights};
use asft::ops::traffic::Traffic;
use asft::train::{Activations, Defence, Penalties, Problems, Sources, TrainOptions, Trainer, dry_run};
use candle_core::{DType, Device, Tensor};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// A model of values that look random.
fn write(dir: &Path, config: &Value) {
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let spec = ModelSpec::load(dir).unwrap();
    let value = |i: usize| ((i * 7_919 % 2_003) as f32 / 1_001.0 - 1.0) / 8.0;
    let tensor = |(number, (name, shape)): (usize, (String, Vec<usize>))| {
        let values: Vec<f32> = (0..shape.iter().product()).map(|i| value(i + 31 * number)).collect();
        (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
    };
    let tensors: BTreeMap<_, _> = spec.tensors().into_iter().enumerate().map(tensor).collect();
    save_tensors(&dir.join("model.safetensors"), &tensors).unwrap();
}

fn batch(samples: usize, length: u32) -> Batch {
    let example = |sample: u32| Example {
        input_ids: (0..length).map(|i| (i * 5 + sample) % 61).collect(),
        labels: (0..length).map(|i| i64::from((i * 3 + sample) % 59)).collect(),
    };
    collate(&(0..samples as u32).map(example).collect::<Vec<_>>())
}

/// The base in a folder, or LoRA of rank 2 on all its linears, as it trains.
fn trainer(dir: &Path, full: bool, checkpointing: bool) -> Trainer {
    let (spec, checkpoint) = (ModelSpec::load(dir).unwrap(), Checkpoint::open(dir).unwrap());
    let weights = if full { Weights::Trained } else { Weights::Frozen };
    let place = (&Device::Cpu, DType::F32);
    let mut model = Decoder::load(&spec, &checkpoint, place, weights, &ProgressBar::hidden()).unwrap();
    let (targets, adapter) = (spec.linear_modules(), (!full).then(|| adapter(&spec)));
    if let Some(adapter) = &adapter {
        let (loras, parameters) = adapter.trainable().unwrap();
        model.attach(loras, parameters).unwrap();
    }
    let asft = AsftOptions { penalize: Penalize::None, ..AsftOptions::default() };
    let penalties = Penalties::new(&asft, &targets, None, adapter.as_ref(), &model).unwrap();
    let options = TrainOptions { gradient_checkpointing: checkpointing, ..TrainOptions::default() };
    Trainer::new(model, penalties, &options, false)
}

fn adapter(spec: &ModelSpec) -> Adapter {
    let sizes = spec.linear_modules().into_iter().map(|module| (module, ModuleSize { rank: 2, alpha: 4 })).collect();
    let modules = fresh_modules(spec, &sizes, 1, &Device::Cpu).unwrap();
    Adapter { modules, use_rslora: false, dropout: 0.0, base: None, revision: None, layout: Default::default() }
}

/// Multiply-adds of a step on these samples.
fn work(config: &Value, full: bool, checkpointing: bool, (samples, length): (usize, u32)) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), config);
    let mut trainer = trainer(dir.path(), full, checkpointing);
    let before = Traffic::so_far();
    trainer.step(0, &[batch(samples, length)], 1e-4).unwrap();
    Traffic::so_far().since(before).multiply_adds
}

/// More experts cost a larger router and nothing else, whoever trains; more experts for each token cost their products.
#[test]
fn a_step_of_a_mixture_costs_its_chosen_experts() {
    let _alone = ALONE.lock().unwrap();
    let (hidden, inner, tokens) = (32, 24, 4 * 40);
    let mixture = |model_type: &str, experts: usize, per_token: usize| {
        json!({
            "model_type": model_type, "hidden_size": hidden, "intermediate_size": 64, "moe_intermediate_size": inner,
            "num_experts": experts, "num_experts_per_tok": per_token, "norm_topk_prob": true, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 2, "vocab_size": 64, "tie_word_embeddings": true,
            "layer_types": ["full_attention", "full_attention"], "shared_expert_intermediate_size": 16,
        })
    };
    for model_type in ["qwen3_moe", "qwen3_5_moe_text"] {
        for (full, checkpointing) in [(false, false), (false, true), (true, false)] {
            let work =
                |experts, per_token| work(&mixture(model_type, experts, per_token), full, checkpointing, (4, 40));
            let (few, many, more) = (work(8, 2), work(32, 2), work(8, 3));
            // Forward, dh, dW if it trains, and forward again; two layers.
            let passes = 2 * (2 + u64::from(full) + u64::from(checkpointing));
            let (router, expert) = (tokens * hidden * (32 - 8), tokens * 3 * hidden * inner);
            assert_eq!(many - few, passes * router, "{model_type}, full {full}, checkpointing {checkpointing}");
            assert_eq!(more - few, passes * expert, "{model_type}, full {full}, checkpointing {checkpointing}");
        }
    }
}

/// With checkpointing a block runs again but for its last product, whose result only the block's output takes.
#[test]
fn a_block_that_runs_again_leaves_its_last_product_out() {
    let _alone = ALONE.lock().unwrap();
    let (hidden, tokens, layers, rank) = (32, 4 * 40, 2, 2);
    let family = |model_type: &str, inner: u64| {
        json!({
            "model_type": model_type, "hidden_size": hidden, "intermediate_size": inner, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": layers, "vocab_size": 64,
        })
    };
    // The norm after the MLP of Gemma 2 needs what the MLP returns.
    for (model_type, products) in [("llama", 2), ("gemma2", 3)] {
        for full in [false, true] {
            let grown = |checkpointing| {
                let work = |inner| work(&family(model_type, inner), full, checkpointing, (4, 40));
                work(64) - work(48)
            };
            // Gate and up, and their adapters' B; down's A, and the product itself with its adapter's B.
            let adapters = if full { 0 } else { rank * 3 };
            let again = tokens * layers * (64 - 48) * (hidden * products + adapters);
            assert_eq!(grown(true) - grown(false), again, "{model_type}, full {full}");
        }
    }
}

/// Of whole chunks of 64 positions each costs as much as the one before, where attention costs more.
#[test]
fn a_step_of_gated_delta_nets_grows_linearly_with_the_length() {
    // The body for any device has them as its own products.
    if std::env::var("ASFT_OPS").is_ok_and(|ops| !ops.is_empty()) {
        return;
    }
    let _alone = ALONE.lock().unwrap();
    let hybrid = |kind: &str| {
        json!({
            "model_type": "qwen3_5_text", "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 16, "num_hidden_layers": 2, "vocab_size": 64, "linear_num_key_heads": 1,
            "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 12, "layer_types": [kind, kind],
        })
    };
    for (kind, linear) in [("linear_attention", true), ("full_attention", false)] {
        let work = |chunks: u32| work(&hybrid(kind), false, true, (1, 64 * chunks)) as i64;
        let lengths: Vec<i64> = (1..=9).map(work).collect();
        let growth: Vec<i64> = lengths.windows(2).map(|pair| pair[1] - pair[0]).collect();
        if linear {
            assert!(growth.iter().all(|more| *more == growth[0]), "{growth:?}");
        } else {
            assert!(growth.windows(2).all(|pair| pair[1] > pair[0]), "{growth:?}");
        }
    }
}

/// Settings of a run of the model in a folder.
fn settings(model: &Path, train: &Path, more: &str) -> Settings {
    let scratch = tempfile::tempdir().unwrap();
    let config = format!(
        "[model]\naligned = {model:?}\n[lora]\nrank = 2\nalpha = 4\ntarget_modules = 'all-linear'\n[asft]\npenalize = 'none'\n\
         [output]\ndir = {:?}\n[data]\ntrain = {train:?}\n{more}",
        scratch.path().join("run"),
    );
    std::fs::write(scratch.path().join("run.toml"), config).unwrap();
    Settings::load(&scratch.path().join("run.toml"), &[]).unwrap()
}

fn planned(settings: &Settings) -> Value {
    serde_json::to_value(dry_run(settings, None).unwrap()).unwrap()["memory_bytes"].clone()
}

/// Full tuning of a model whose inputs of layers have an embedding that is larger than all else, as in Gemma 4's small models.
#[test]
fn full_tuning_holds_what_was_planned_with_inputs_of_layers() {
    let _alone = ALONE.lock().unwrap();
    let (dir, length) = (tempfile::tempdir().unwrap(), 48);
    let config = json!({
        "model_type": "gemma4_text", "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "global_head_dim": 32, "num_hidden_layers": 3, "vocab_size": 512,
        "hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 16384, "sliding_window": 16,
    });
    write(dir.path(), &config);
    let (_, held) = peak(|| {
        let mut trainer = trainer(dir.path(), true, true);
        for step in 0..2 {
            trainer.step(step, &[batch(2, length), batch(2, length)], 1e-4).unwrap();
        }
    });
    let (data, ids) = (dir.path().join("data.jsonl"), (0..length).collect::<Vec<u32>>());
    std::fs::write(&data, (json!({"input_ids": ids, "labels": ids}).to_string() + "\n").repeat(4)).unwrap();
    let more = "format = 'tokenized'\n[train]\nmethod = 'full'\nbatch_size = 2\ngradient_accumulation = 2\n";
    let parts = planned(&settings(dir.path(), &data, more));
    let part = |name: &str| parts[name].as_f64().unwrap();
    let planned = part("trained") + part("activations").max(part("logits"));
    let ratio = held as f64 / planned;
    println!("{held} bytes held, {planned} planned: {parts}");
    assert!((0.8..1.2).contains(&ratio), "{held} bytes are held, {planned} were planned: {parts}");
}

/// The pass that sums up what prompts give each linear, in f64, before the first step.
#[test]
fn a_defence_s_pass_before_the_first_step_holds_what_was_planned() {
    let _alone = ALONE.lock().unwrap();
    let (dir, tiny) = (tempfile::tempdir().unwrap(), Path::new("tests/tiny"));
    let config = json!({
        "model_type": "llama", "hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 4, "vocab_size": 448, "max_position_embeddings": 1024,
    });
    write(dir.path(), &config);
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        std::fs::copy(tiny.join("aligned").join(file), dir.path().join(file)).unwrap();
    }
    let prompts = dir.path().join("prompts.jsonl");
    let prompt = json!({"instruction": "Add the two numbers. ".repeat(30), "output": "No."}).to_string() + "\n";
    std::fs::write(&prompts, prompt.repeat(4)).unwrap();
    // A thread's first decomposition asks for address space, not for memory, to work in from then on.
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    one_thread.install(|| asft::method::orthonormal(128, 64, "first").unwrap());
    for (rank, batch_size) in [(64, 2), (4, 4), (128, 1)] {
        let more = format!(
            "max_length = 1024\n[defence]\nkind = 'activations'\nprompts = {prompts:?}\nrank = {rank}\nbatch_size = {batch_size}\n"
        );
        let settings = settings(dir.path(), &tiny.join("train.jsonl"), &more);
        let planned = planned(&settings)["before"].as_f64().unwrap();
        let mut trainer = trainer(dir.path(), false, true);
        let adapters: usize = trainer.model.parameters().values().map(|var| var.elem_count()).sum();
        let mut defence = watching(&settings);
        let (_, held) = peak(|| one_thread.install(|| defence.start(&mut trainer.model).unwrap()));
        let held = held + 4 * adapters;
        println!("rank {rank}, {batch_size} prompts at once: {held} bytes held, {planned} planned");
        let ratio = held as f64 / planned;
        assert!((0.8..1.2).contains(&ratio), "rank {rank}: {held} bytes are held, {planned} were planned");
    }
}

/// The defence with its prompts.
fn watching(settings: &Settings) -> Activations {
    let mut problems = Problems::default();
    let sources = Sources::find(settings, asft::hub::resolve, &mut problems);
    let spec = sources.spec(&mut problems).unwrap();
    let inputs = sources.read(settings, &spec, &mut problems).unwrap();
    let mut defence = Activations::new(&settings.defence);
    defence.prepare(inputs.own, settings, 10).unwrap();
    defence
}

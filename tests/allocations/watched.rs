//! What the defence `activations` holds before the first step, through the GPU's kernels, beside the plan of a dry run.

use super::allocator::peak;
use super::{through_kernels, trainer_of, write};
use asft::config::Settings;
use asft::model::{ModelSpec, Quantize, Weights};
use asft::quant::Format;
use asft::train::{Activations, Defence, Problems, Sources, dry_run};
use candle_core::DType;
use serde_json::json;
use std::path::Path;

/// A run on a short prompt, of a model so wide that one of its weights, widened, is most of what the pass holds. In f32, as a CPU's
/// products widen narrower weights for themselves.
fn settings(dir: &Path, scratch: &Path, quantize: &str) -> Settings {
    let tiny = Path::new("tests/tiny");
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        std::fs::copy(tiny.join("aligned").join(file), dir.join(file)).unwrap();
    }
    let prompts = scratch.join("prompts.jsonl");
    std::fs::write(&prompts, json!({"instruction": "Add the two numbers.", "output": "No."}).to_string()).unwrap();
    let config = format!(
        "[model]\naligned = {dir:?}\ndtype = 'f32'\ndevice = 'cuda'\n{quantize}\n[lora]\nrank = 1\nalpha = 2\ndropout = 0.05\n\
         [asft]\npenalize = 'none'\n[output]\ndir = {:?}\n[data]\ntrain = {:?}\n[defence]\nkind = 'activations'\n\
         prompts = {prompts:?}\nrank = 4\nbatch_size = 1\n",
        scratch.join("run"),
        tiny.join("train.jsonl"),
    );
    std::fs::write(scratch.join("run.toml"), config).unwrap();
    Settings::load(&scratch.join("run.toml"), &[]).unwrap()
}

/// The defence with its prompts.
fn watching(settings: &Settings) -> Activations {
    let mut problems = Problems::default();
    let sources = Sources::find(settings, asft::hub::resolve, &mut problems);
    let spec: ModelSpec = sources.spec(&mut problems).unwrap();
    let inputs = sources.read(settings, &spec, &mut problems).unwrap();
    let mut defence = Activations::new(&settings.defence);
    defence.prepare(inputs.own, settings, 10).unwrap();
    defence
}

#[test]
fn a_pass_over_prompts_holds_what_was_planned_on_quantised_weights() {
    let _alone = through_kernels();
    let (dir, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = json!({
        "model_type": "llama", "hidden_size": 512, "intermediate_size": 4096, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 448, "max_position_embeddings": 512,
    });
    write(dir.path(), &config);
    // A thread's first decomposition asks for address space, not for memory, to work in from then on.
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    one_thread.install(|| asft::method::orthonormal(512, 4, "first").unwrap());
    for (quantize, weights) in [
        ("", Weights::Frozen),
        ("quantize = 'nf4'", Weights::Quantised { format: Format::from(Quantize::Nf4), head: false }),
    ] {
        let settings = settings(dir.path(), scratch.path(), quantize);
        let planned = &serde_json::to_value(dry_run(&settings, None).unwrap()).unwrap()["memory_bytes"]["before"];
        let mut trainer = trainer_of(dir.path(), DType::F32, weights, 0.05, 1);
        let adapters: usize = trainer.model.parameters().values().map(|var| var.elem_count()).sum();
        let mut defence = watching(&settings);
        let (_, held) = peak(|| one_thread.install(|| defence.start(&mut trainer.model).unwrap()));
        let held = held + 4 * adapters;
        println!("{weights:?}: {held} bytes held, {planned} planned");
        let ratio = held as f64 / planned.as_f64().unwrap();
        assert!((0.8..1.2).contains(&ratio), "{weights:?}: {held} bytes are held, {planned} were planned");
    }
}

//! What is fuzzed: every file that somebody else may have written, read the way the program reads it.
//!
//! A target takes any bytes, and must neither panic nor hang nor take much memory. Whatever it refuses must be reported
//! as the user's mistake (exit code 2). Files go to a temporary folder, one per thread.

use asft::checkpoint::Checkpoint;
use asft::config::Settings;
use asft::data::{self, Columns, DataOptions, Format, Overlong, Template};
use asft::error::exit_code;
use asft::eval::Encoder;
use asft::model::ModelSpec;
use asft::serve::{Kind, Limits, Preparing};
use asft::tokenizer::Tokenizer;
use candle_core::Device;
use indicatif::ProgressBar;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// The name of a corpus, and the function that runs one of its inputs.
pub type Target = (&'static str, fn(&[u8]));

/// Every target by the name of its corpus.
pub const TARGETS: [Target; 14] = [
    ("config", config),
    ("json", json),
    ("table", table),
    ("parquet", parquet),
    ("safetensors", safetensors),
    ("index", index),
    ("gguf", gguf),
    ("four_bit", four_bit),
    ("adapter", adapter),
    ("model", model),
    ("tokenizer", tokenizer),
    ("template", template),
    ("conversation", conversation),
    ("request", request),
];

const TOKENIZER: &[u8] = include_bytes!("../../tests/tiny/aligned/tokenizer.json");
const TOKENIZER_CONFIG: &[u8] = include_bytes!("../../tests/tiny/aligned/tokenizer_config.json");
const CHAT_TEMPLATE: &[u8] = include_bytes!("../../tests/tiny/aligned/chat_template.jinja");
const MODEL_CONFIG: &[u8] = include_bytes!("../../tests/tiny/aligned/config.json");
const ADAPTER: &[u8] = include_bytes!("../../tests/fixtures/llama_gqa/adapter/adapter_model.safetensors");
const FORMATS: [Format; 6] =
    [Format::Alpaca, Format::Chat, Format::Sharegpt, Format::PromptCompletion, Format::Text, Format::Tokenized];

/// This thread's folder, with what the targets need beside the file that they write.
struct Scratch {
    dir: TempDir,
    tokenizer: Tokenizer,
    serving: Preparing,
}

thread_local! {
    static SCRATCH: Scratch = Scratch::new().expect("a temporary folder can be written");
}

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        for name in ["chat", "index", "adapter", "model", "tokenizer", "four_bit"] {
            std::fs::create_dir(dir.path().join(name))?;
        }
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes);
        write("chat/tokenizer.json", TOKENIZER)?;
        write("chat/tokenizer_config.json", TOKENIZER_CONFIG)?;
        write("chat/chat_template.jinja", CHAT_TEMPLATE)?;
        write("adapter/adapter_model.safetensors", ADAPTER)?;
        write("index/model.safetensors", ADAPTER)?;
        write("chat/config.json", MODEL_CONFIG)?;
        let tokenizer = Tokenizer::load(&dir.path().join("chat"))?;
        let template = Template::load("tokenizer", &Default::default(), &tokenizer)?;
        let spec = ModelSpec::load(&dir.path().join("chat"))?;
        let encoder = Encoder { tokenizer: tokenizer.clone(), template: Some(template), spec, prefill: String::new() };
        let (request, grace) = (Duration::from_secs(1), Duration::from_secs(1));
        let limits = Limits { body_bytes: 1 << 20, context: 256, batch_size: 2, queue: 2, request, grace };
        let serving = Preparing { names: vec!["base".to_string(), "tuned".to_string()], encoder, limits };
        Ok(Self { dir, tokenizer, serving })
    }
}

/// Writes `bytes` to `name` in the scratch folder and hands its path to `read`.
fn with_file<T>(name: &str, bytes: &[u8], read: impl FnOnce(&Path, &Tokenizer) -> T) -> T {
    SCRATCH.with(|scratch| {
        let path: PathBuf = scratch.dir.path().join(name);
        std::fs::write(&path, bytes).expect("the temporary folder is still there");
        read(&path, &scratch.tokenizer)
    })
}

/// The value, or `None` if the refusal is one that the user can do something about.
fn accepted<T>(result: anyhow::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            assert_eq!(exit_code(&error), 2, "{error:#}");
            None
        }
    }
}

/// Bytes up to the first NUL are the config file, the rest `--set` overrides between NULs.
pub fn config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.split('\0');
    let file = parts.next().unwrap_or_default();
    let overrides: Vec<String> = parts.map(String::from).collect();
    let Some(settings) = accepted(Settings::from_toml(file, "run.toml", &overrides)) else { return };
    let text = settings.to_toml().expect("settings are TOML");
    let again = Settings::from_toml(&text, "config.toml", &[]).expect("what was resolved is a config");
    assert_eq!(settings, again, "{text}");
}

/// A dataset in a file called `name`; the first byte says what its records are.
fn dataset(name: &str, bytes: &[u8]) {
    let Some((&first, content)) = bytes.split_first() else { return };
    let format = FORMATS[usize::from(first) % FORMATS.len()];
    let overlong = if first < 128 { Overlong::Truncate } else { Overlong::Drop };
    let options = DataOptions { format, overlong, max_length: 64, allow_empty_labels: true, ..DataOptions::default() };
    with_file(name, content, |path, tokenizer| {
        if let Some(dataset) = accepted(data::load(path, &options, tokenizer, &ProgressBar::hidden())) {
            let examples = dataset.examples().expect("they are in memory");
            assert!(examples.iter().all(|example| example.input_ids.len() == example.labels.len()));
        }
        accepted(data::load_prompts(path, &Columns::default()));
    });
}

/// JSONL and arrays.
pub fn json(bytes: &[u8]) {
    dataset("data.jsonl", bytes);
}

/// CSV; TSV for the second half of the formats.
pub fn table(bytes: &[u8]) {
    let is_tsv = bytes.first().is_some_and(|first| first % 2 == 1);
    dataset(if is_tsv { "data.tsv" } else { "data.csv" }, bytes);
}

pub fn parquet(bytes: &[u8]) {
    dataset("data.parquet", bytes);
}

/// A safetensors file: its header, then every tensor.
pub fn safetensors(bytes: &[u8]) {
    with_file("file.safetensors", bytes, |path, _| {
        let Some(file) = accepted(Checkpoint::open_file(path)) else { return };
        let names: Vec<&str> = file.names().collect();
        for name in &names {
            assert!(file.info(name).is_some_and(|info| info.bytes() <= bytes.len()));
            file.read_bytes(name).expect("the header was checked against the file");
            accepted(file.read_f32(name));
            accepted(file.tensor(name, candle_core::DType::F32, &Device::Cpu));
        }
        file.content_hash(names).expect("the header was checked against the file");
    });
}

/// `model.safetensors.index.json` beside one real shard.
pub fn index(bytes: &[u8]) {
    with_file("index/model.safetensors.index.json", bytes, |path, _| {
        accepted(Checkpoint::open(path.parent().expect("it is in a folder")));
    });
}

/// A GGUF file: its header, the spec, then every tensor.
pub fn gguf(bytes: &[u8]) {
    with_file("model.gguf", bytes, |path, _| {
        if let Some(spec) = accepted(ModelSpec::load(path)) {
            spec.tensors();
        }
        accepted(Tokenizer::load(path)).iter().for_each(tokenize);
        let Some(file) = accepted(Checkpoint::open(path)) else { return };
        for name in file.names() {
            assert!(file.info(name).is_some_and(|info| info.bytes() <= bytes.len()));
            if let Some(values) = accepted(file.read_f32(name)) {
                assert_eq!(file.info(name).map(|info| info.elements()), Some(values.len()));
            }
        }
    });
}

/// A model folder's safetensors file with weights in four bits and what belongs to them, as bitsandbytes saves it.
pub fn four_bit(bytes: &[u8]) {
    with_file("four_bit/model.safetensors", bytes, |path, _| {
        let folder = path.parent().expect("it is in a folder");
        let Some(file) = accepted(Checkpoint::open(folder)) else { return };
        let names: Vec<&str> = file.names().collect();
        for name in &names {
            let elements = file.info(name).map(|info| info.elements());
            if let Some(Some(matrix)) = accepted(file.quantised(name)) {
                assert_eq!(elements, Some(matrix.len()));
            }
            if let Some(values) = accepted(file.read_f32(name)) {
                assert_eq!(elements, Some(values.len()));
            }
        }
        file.content_hash(names).expect("the header was checked against the file");
    });
}

/// `adapter_config.json` beside real matrices.
pub fn adapter(bytes: &[u8]) {
    with_file("adapter/adapter_config.json", bytes, |path, _| {
        accepted(asft::adapter::load(path.parent().expect("it is in a folder"), &Device::Cpu));
    });
}

/// A model's `config.json`, and the checks on the spec before any weight is looked at.
pub fn model(bytes: &[u8]) {
    with_file("model/config.json", bytes, |path, _| {
        let Some(spec) = accepted(ModelSpec::load(path.parent().expect("it is in a folder"))) else { return };
        assert!(spec.layers.iter().all(|layer| layer.rope.is_none_or(|rope| rope < spec.ropes.len())));
        spec.context();
        spec.linear_modules();
        spec.tensors();
    });
}

/// `tokenizer.json`, and after a NUL, if any, `tokenizer_config.json`; then texts to ids and back.
pub fn tokenizer(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let (file, config) = (parts.next().unwrap_or_default(), parts.next().unwrap_or(b"{}"));
    with_file("tokenizer/tokenizer_config.json", config, |_, _| ());
    with_file("tokenizer/tokenizer.json", file, |path, _| {
        accepted(Tokenizer::load(path.parent().expect("it is in a folder"))).iter().for_each(tokenize);
    });
}

/// What a run asks of a tokenizer.
fn tokenize(tokenizer: &Tokenizer) {
    for text in ["", "What is 3 and 19?\n  <s>Ünï🦀</s>", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!"] {
        let Some(ids) = accepted(tokenizer.encode(text, true)) else { continue };
        if let Some(encoded) = accepted(tokenizer.encode_with_offsets(text, true)) {
            assert_eq!(encoded.ids, ids);
            assert!(encoded.offsets.iter().all(|&(start, end)| start <= end && end <= text.len()));
        }
        accepted(tokenizer.decode(&ids, false));
        accepted(tokenizer.pieces(&ids));
    }
}

/// A conversation with all that a template may look at.
fn messages() -> (Vec<Value>, Map<String, Value>) {
    let call = serde_json::json!({"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": [2.5]}}});
    let messages = serde_json::json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "3 and 19?"}]},
        {"role": "assistant", "content": "", "reasoning": "a call", "tool_calls": [call]},
        {"role": "tool", "content": "22"},
        {"role": "assistant", "content": "22 \u{1f980}\n"},
    ]);
    let tools =
        serde_json::json!([{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]);
    (messages.as_array().cloned().unwrap_or_default(), Map::from_iter([("tools".to_string(), tools)]))
}

/// A chat template: compiled, and rendered with and without generation prompt.
pub fn template(bytes: &[u8]) {
    let source = String::from_utf8_lossy(bytes);
    let tokens = [("bos_token".to_string(), "<s>".to_string()), ("eos_token".to_string(), "</s>".to_string())];
    let Some(template) = accepted(Template::new(&source, &tokens)) else { return };
    let (messages, variables) = messages();
    accepted(template.render(&messages, false, &variables));
    accepted(template.render(&messages[..2], true, &Map::new()));
}

/// A chat template up to a NUL, then a conversation as JSON, encoded and labelled.
pub fn conversation(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let (source, record) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    with_file("template.jinja", source, |path, _| {
        let template = path.display().to_string();
        let options =
            DataOptions { format: Format::Chat, template, allow_empty_labels: true, ..DataOptions::default() };
        with_file("chat.jsonl", record, |path, tokenizer| {
            accepted(data::load(path, &options, tokenizer, &ProgressBar::hidden()));
        });
    });
}

/// The body of a request to a server, as a chat and as a completion.
pub fn request(bytes: &[u8]) {
    SCRATCH.with(|scratch| {
        for kind in [Kind::Chat, Kind::Completion] {
            match scratch.serving.prepare(kind, bytes, 0) {
                Ok(prepared) => {
                    assert!((1..=4).contains(&prepared.drafts.len()));
                    let fits = |length: usize, room: usize| length > 0 && length + room <= 256;
                    let drafts = prepared.drafts.iter();
                    assert!(drafts.clone().all(|draft| fits(draft.prompt.len(), draft.options.max_new_tokens)));
                }
                Err(refusal) => assert!([400, 404].contains(&refusal.status), "{refusal:?}"),
            }
        }
    });
}

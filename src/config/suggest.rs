//! Settings for a model of which little but the folder is known: what `asft init` writes.

use super::{Settings, commented};
use crate::hub::Resolved;
use crate::method::Penalize;
use crate::model::{Dtype, ModelSpec};
use crate::names::Targets;
use crate::{data::Format, ensure_valid};
use anyhow::Result;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Words in a name that mark the tuned model of a pair.
const TUNED: [&str; 3] = ["instruct", "chat", "it"];
/// Longest sample to suggest; more would cost memory that few data sets need.
const MAX_LENGTH: usize = 2048;
const SAVE_EVERY_STEPS: usize = 200;

/// Settings, and the reasons for some of them.
pub struct Suggestion {
    settings: Settings,
    /// By dotted key.
    notes: BTreeMap<&'static str, String>,
}

/// What is known besides the model.
#[derive(Default)]
pub struct Given {
    pub unaligned: Option<String>,
    pub direction: Option<String>,
    /// In place of the model's own.
    pub tokenizer: Option<String>,
    /// Training samples.
    pub data: Option<String>,
    /// The format of `data`, where it could be looked at.
    pub format: Option<Format>,
}

/// How to choose λ.
const ABOUT_LAMBDA: &str = "To choose it, run with output.log_modules_every = 50 and lambda = 0.1, 1 and 10: \
     `gradient_ratio` in modules.jsonl says what the penalty's gradient is against the task's (far below 1 it does \
     nothing, far above 1 it drowns out the task), and `asft eval` on harmful prompts and on your task says what each \
     costs and protects. Compare with penalize = \"all\" at the same lambda, the control.";

/// Settings for the model `base`, which is named `source`.
///
/// # Errors
/// A model that asft cannot train.
pub fn for_model(source: &str, base: &Resolved, given: Given) -> Result<Suggestion> {
    let spec = ModelSpec::load(&base.place)?;
    let mut settings = Settings::default();
    let mut notes = BTreeMap::new();
    settings.model.aligned = source.to_string();
    settings.model.tokenizer = given.tokenizer.clone();
    direction(&mut settings, &mut notes, source, &given);
    notes.insert("asft.lambda", ABOUT_LAMBDA.to_string());
    if let Some(dtype) = stored_dtype(&base.place) {
        settings.model.dtype = dtype;
        notes.insert("model.dtype", "As the checkpoint has it.".to_string());
    }
    if spec.fused_qkv {
        settings.lora.target_modules = Targets::List(vec!["qkv_proj".to_string()]);
    }
    // None of the default's names may be missing.
    let targets = settings.lora.targets(&spec)?;
    ensure_valid!(!targets.is_empty(), "{source} has no layers to train");
    let modules = spec.linear_modules();
    let names = distinct(modules.iter().map(|module| crate::names::short_name(module)));
    notes.insert(
        "lora.target_modules",
        format!("This model has {} in {} layers.", names.join(", "), spec.num_hidden_layers),
    );
    let data = given.data.as_deref().unwrap_or_else(|| {
        notes.insert("data.train", "To be filled in.".to_string());
        "train.jsonl"
    });
    settings.data.train = data.into();
    settings.data.max_length = MAX_LENGTH.min(spec.context());
    notes.insert("data.max_length", format!("The model's context is {}.", spec.context()));
    let has_template = base.load_tokenizer().is_ok_and(|tokenizer| tokenizer.chat_template().is_some());
    if let Some(format) = given.format {
        settings.data.format = format;
        notes.insert("data.format", "As the first record has it.".to_string());
    } else if !has_template {
        settings.data.format = Format::PromptCompletion;
        notes.insert("data.format", "The tokenizer has no chat template, which other formats need.".to_string());
    }
    settings.output.dir = format!("runs/{}", short_name(source));
    settings.output.save_every_steps = Some(SAVE_EVERY_STEPS);
    Ok(Suggestion { settings, notes })
}

impl Suggestion {
    /// A config with every key.
    pub fn to_toml(&self) -> Result<String> {
        let aligned = &self.settings.model.aligned;
        let head = format!("# Settings for fine-tuning {aligned} with asft. What is commented out is not set.\n");
        Ok(head + &commented::config(&self.settings, &self.notes)?)
    }

    /// Keys that only the user can fill in, with what to do.
    pub fn to_do(&self) -> Vec<(&'static str, String)> {
        let data = self.notes.contains_key("data.train").then(|| {
            ("data.train", "before training, set data.train, the file of your samples (or use --data)".to_string())
        });
        let partner = (self.settings.asft.penalize == Penalize::All).then(|| {
            let what = "the model that this one was tuned from is not known: the config shrinks updates without a \
                        direction (penalize = \"all\"); for AsFT's penalty, use --unaligned or --direction";
            ("model.unaligned", what.to_string())
        });
        [data, partner].into_iter().flatten().collect()
    }
}

/// Where the direction comes from; without any, the penalty that needs none.
fn direction(settings: &mut Settings, notes: &mut BTreeMap<&'static str, String>, source: &str, given: &Given) {
    settings.asft.direction = given.direction.clone();
    settings.model.unaligned = given.unaligned.clone();
    if given.direction.is_some() {
        notes.insert("model.unaligned", "Not needed beside asft.direction.".to_string());
    } else if given.unaligned.is_none() {
        settings.model.unaligned = partner(source);
        let by_name = "Chosen by its name: make sure that it is the model that this one was tuned from.";
        let unknown = "Not known by name: with the model that this one was tuned from here (or a file in \
                       asft.direction) set asft.penalize = \"orthogonal\".";
        let note = if settings.model.unaligned.is_some() { by_name } else { unknown };
        notes.insert("model.unaligned", note.to_string());
    }
    if settings.model.unaligned.is_none() && settings.asft.direction.is_none() {
        settings.asft.penalize = Penalize::All;
        let note = "It is \"all\" here because the method needs a direction, and neither model.unaligned nor \
                    asft.direction is known.";
        notes.insert("asft.penalize", note.to_string());
    }
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found: Vec<&str> = vec![];
    for name in names {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

/// A model's name without its owner, folder and revision, in lower case: `qwen2-7b-instruct`.
pub fn short_name(source: &str) -> String {
    let path = source.split('@').next().unwrap_or(source).trim_end_matches('/');
    let name = path.rsplit('/').next().unwrap_or(path).to_lowercase();
    if name.is_empty() || name.starts_with('.') { "model".to_string() } else { name }
}

/// The type that config.json states for the checkpoint's weights.
fn stored_dtype(dir: &Path) -> Option<Dtype> {
    let text = std::fs::read_to_string(dir.join("config.json")).ok()?;
    let config: Value = serde_json::from_str(&text).ok()?;
    match config.get("dtype").or_else(|| config.get("torch_dtype"))?.as_str()? {
        "bfloat16" => Some(Dtype::Bf16),
        "float16" => Some(Dtype::F16),
        "float32" => Some(Dtype::F32),
        _ => None,
    }
}

/// The base model of a tuned one, by name: on the hub by its makers' naming, on disk if it exists.
fn partner(source: &str) -> Option<String> {
    let path = source.split('@').next().unwrap_or(source).trim_end_matches('/');
    let (owner, name) = path.rsplit_once('/').map_or(("", path), |(owner, name)| (owner, name));
    let partner = partner_name(name)?;
    let partner = if owner.is_empty() { partner } else { format!("{owner}/{partner}") };
    (!Path::new(source).is_dir() || Path::new(&partner).is_dir()).then_some(partner)
}

fn partner_name(name: &str) -> Option<String> {
    let words: Vec<&str> = name.split('-').collect();
    let lower = name.to_lowercase();
    // Qwen3-8B is tuned, its base is Qwen3-8B-Base; not all sizes have one.
    if let ["Qwen3", size @ ("0.6B" | "1.7B" | "4B" | "8B" | "14B"), ..] = words[..] {
        return (words.last() != Some(&"Base")).then(|| format!("Qwen3-{size}-Base"));
    }
    // Its base was never published under that name.
    if lower == "mistral-7b-instruct-v0.2" {
        return None;
    }
    let at = words.iter().position(|word| TUNED.contains(&word.to_lowercase().as_str()))?;
    let mut words = words;
    if lower.starts_with("gemma-3") {
        words[at] = "pt";
    } else {
        words.remove(at);
    }
    (!words.is_empty()).then(|| words.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partners_are_known_by_name() {
        for (tuned, base) in [
            ("Qwen/Qwen2-7B-Instruct", Some("Qwen/Qwen2-7B")),
            ("Qwen/Qwen2.5-0.5B-Instruct@main", Some("Qwen/Qwen2.5-0.5B")),
            ("Qwen/Qwen3-8B", Some("Qwen/Qwen3-8B-Base")),
            ("Qwen/Qwen3-8B-Base", None),
            ("Qwen/Qwen3-4B-Instruct-2507", Some("Qwen/Qwen3-4B-Base")),
            ("meta-llama/Llama-2-7b-chat-hf", Some("meta-llama/Llama-2-7b-hf")),
            ("meta-llama/Meta-Llama-3-8B-Instruct", Some("meta-llama/Meta-Llama-3-8B")),
            ("mistralai/Mistral-7B-Instruct-v0.3", Some("mistralai/Mistral-7B-v0.3")),
            ("mistralai/Mistral-7B-Instruct-v0.2", None),
            ("google/gemma-2-9b-it", Some("google/gemma-2-9b")),
            ("google/gemma-3-1b-it", Some("google/gemma-3-1b-pt")),
            ("HuggingFaceTB/SmolLM2-135M-Instruct", Some("HuggingFaceTB/SmolLM2-135M")),
            ("meta-llama/Llama-2-7b-hf", None),
        ] {
            assert_eq!(partner(tuned).as_deref(), base, "{tuned}");
        }
        assert_eq!(short_name("Qwen/Qwen2-7B-Instruct@main"), "qwen2-7b-instruct");
        assert_eq!(short_name("./models/"), "models");
    }

    #[test]
    fn a_folder_s_partner_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let tuned = dir.path().join("toy-instruct");
        std::fs::create_dir(&tuned).unwrap();
        let source = tuned.display().to_string();
        assert_eq!(partner(&source), None);
        std::fs::create_dir(dir.path().join("toy")).unwrap();
        assert_eq!(partner(&source), Some(dir.path().join("toy").display().to_string()));
    }
}

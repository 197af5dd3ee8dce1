//! What a tokenizer is made from.
//!
//! Of a folder `tokenizer.json` and, as transformers 4 and 5 write them, `tokenizer_config.json`,
//! `special_tokens_map.json`, `chat_template.jinja`, `generation_config.json` and `config.json`. Of a GGUF file what these
//! would say, which is for others to find out.

use crate::checkpoint::gguf::Header;
use crate::checkpoint::is_gguf;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde_json::{Map, Value};
use std::path::Path;
use tokenizers::Tokenizer;

pub const TOKENIZER: &str = "tokenizer.json";
pub const CONFIG: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";
const TEMPLATE: &str = "chat_template.jinja";
pub const GENERATION: &str = "generation_config.json";
const MODEL: &str = "config.json";

/// All files of a folder besides its weights that determine what a model computes and how text is tokenized.
const FILES: [&str; 6] = [MODEL, GENERATION, TOKENIZER, CONFIG, SPECIAL, TEMPLATE];

/// What the files say.
#[derive(Debug, Default, PartialEq)]
pub struct Source {
    /// tokenizer.json
    pub tokenizer: Map<String, Value>,
    /// tokenizer_config.json
    pub config: Map<String, Value>,
    /// special_tokens_map.json
    pub special: Map<String, Value>,
    /// Ids that end generation.
    pub eos_ids: Vec<u32>,
    /// Jinja source of the chat template.
    pub template: Option<String>,
}

impl Source {
    /// Of a folder.
    ///
    /// # Errors
    /// No tokenizer.json; a file that is not what its name says.
    pub fn of_folder(place: &Path) -> Result<Self> {
        let path = place.join(TOKENIZER);
        ensure_valid!(
            path.is_file(),
            "no {TOKENIZER} in {} (a tokenizer.model alone is not read: load the folder with transformers' AutoTokenizer \
             and save_pretrained it)",
            place.display()
        );
        let config = read_object(&place.join(CONFIG))?;
        Ok(Self {
            tokenizer: read_object(&path)?,
            special: read_object(&place.join(SPECIAL))?,
            eos_ids: generation_eos_ids(place)?,
            template: chat_template(place, &config)?,
            config,
        })
    }

    /// Makes the tokenizer of tokenizer.json, without truncation and padding, and with offsets that keep leading whitespace
    /// (ids are unaffected).
    pub fn inner(&mut self, place: &Path) -> Result<Tokenizer> {
        let mut json = Value::Object(std::mem::take(&mut self.tokenizer));
        json["truncation"] = Value::Null;
        json["padding"] = Value::Null;
        keep_whitespace_in_offsets(&mut json["post_processor"]);
        let path = if is_gguf(place) { place.to_path_buf() } else { place.join(TOKENIZER) };
        Tokenizer::from_bytes(serde_json::to_vec(&json)?)
            .map_err(|e| invalid!("{} is not a tokenizer this program can read: {e}", path.display()))
    }
}

/// Adds to a hash all that a model's folder says besides its weights, or what a GGUF file says of its tokenizer.
///
/// # Errors
/// A file cannot be read.
pub fn hash_companions(place: &Path, hasher: &mut blake3::Hasher) -> Result<()> {
    if is_gguf(place) {
        let metadata = Header::read(place)?.metadata;
        for (key, value) in metadata.iter().filter(|(key, _)| key.starts_with("tokenizer.")) {
            hasher.update(format!("{key} {value:?}\n").as_bytes());
        }
        return Ok(());
    }
    for name in FILES {
        let path = place.join(name);
        if path.is_file() {
            let bytes = std::fs::read(&path).map_err(|e| invalid!("cannot read {}: {e}", path.display()))?;
            hasher.update(format!("{name} {}\n", blake3::hash(&bytes).to_hex()).as_bytes());
        }
    }
    Ok(())
}

fn keep_whitespace_in_offsets(processor: &mut Value) {
    if let Some(trim) = processor.get_mut("trim_offsets") {
        *trim = Value::Bool(false);
    }
    if let Some(inner) = processor.get_mut("processors").and_then(Value::as_array_mut) {
        inner.iter_mut().for_each(keep_whitespace_in_offsets);
    }
}

/// A JSON object from a file; empty if there is no such file.
fn read_object(path: &Path) -> Result<Map<String, Value>> {
    if !path.is_file() {
        return Ok(Map::new());
    }
    let bytes = std::fs::read(path).map_err(|e| invalid!("cannot read {}: {e}", path.display()))?;
    serde_json::from_slice(&bytes).map_err(|e| invalid!("{} is not a JSON object: {e}", path.display()))
}

/// `eos_token_id` (an int or a list) of generation_config.json, else of config.json, for its text model or at all.
fn generation_eos_ids(dir: &Path) -> Result<Vec<u32>> {
    for file in [GENERATION, MODEL] {
        let config = read_object(&dir.join(file))?;
        let of = |fields: &Map<String, Value>| fields.get("eos_token_id").filter(|value| !value.is_null()).cloned();
        let Some(value) = of(&config).or_else(|| of(config.get("text_config")?.as_object()?)) else { continue };
        let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match &value {
            Value::Array(ids) => ids.iter().map(one).collect::<Option<Vec<u32>>>(),
            id => one(id).map(|id| vec![id]),
        };
        return ids.ok_or_else(|| {
            invalid!("{}/{file}: eos_token_id is {value}, expected a token id or a list of ids", dir.display())
        });
    }
    Ok(vec![])
}

/// `chat_template.jinja`, else `chat_template` of tokenizer_config.json: a string, or a list of named templates.
fn chat_template(dir: &Path, config: &Map<String, Value>) -> Result<Option<String>> {
    let path = dir.join(TEMPLATE);
    if path.is_file() {
        let text = std::fs::read_to_string(&path).map_err(|e| invalid!("cannot read {}: {e}", path.display()))?;
        return Ok(Some(text));
    }
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(list)) => {
            let default = list.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"));
            Ok(default.and_then(|t| t.get("template")?.as_str()).map(str::to_string))
        }
        Some(_) => Err(invalid!(
            "{}/tokenizer_config.json: chat_template is neither a string nor a list of named templates",
            dir.display()
        )),
    }
}

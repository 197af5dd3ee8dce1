//! What byte-level tokenizers do before merges, by llama.cpp's names.

use crate::invalid;
use anyhow::Result;
use serde_json::{Value, json};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What a name of `tokenizer.ggml.pre` stands for, in the words of tokenizer.json.
pub struct Splitting {
    pub name: &'static str,
    /// The steps of its pre_tokenizer.
    pub steps: Value,
    /// Its normalizer. llama.cpp has none, so text that this changes has other tokens there.
    pub normalizer: Value,
    /// Whether a part of text that is a token is not merged.
    pub ignore_merges: bool,
    /// Whether text begins with the beginning-of-text token if a file does not say.
    pub adds_bos: bool,
}

impl Splitting {
    /// All that are known: those of Llama 3, Qwen, SmolLM and GPT-2.
    pub fn all() -> [Self; 4] {
        let byte_level = |splits: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": splits});
        let split = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        let of = |name, steps| Self { name, steps, normalizer: Value::Null, ignore_merges: false, adds_bos: false };
        let llama3 = of("llama-bpe", json!([split(LLAMA3), byte_level(false)]));
        let qwen2 = of("qwen2", json!([split(QWEN2), byte_level(false)]));
        [
            Self { ignore_merges: true, adds_bos: true, ..llama3 },
            Self { normalizer: json!({"type": "NFC"}), ..qwen2 },
            of("smollm", json!([{"type": "Digits", "individual_digits": true}, byte_level(true)])),
            of("gpt-2", json!([byte_level(true)])),
        ]
    }

    /// Whether it is what this tokenizer.json does.
    fn is_of(&self, json: &Value) -> bool {
        let mut steps = match &json["pre_tokenizer"] {
            Value::Object(step) if step.get("type").is_some_and(|kind| kind == "Sequence") => {
                step["pretokenizers"].clone()
            }
            step => json!([step]),
        };
        for step in steps.as_array_mut().into_iter().flatten() {
            // It changes no ids.
            if let Some(trims) = step.get_mut("trim_offsets") {
                *trims = json!(true);
            }
        }
        let model = &json["model"];
        let plain = ["continuing_subword_prefix", "end_of_word_suffix"];
        let is_plain = plain.iter().all(|key| model[*key].as_str().unwrap_or_default().is_empty())
            && model["byte_fallback"].as_bool() != Some(true);
        model["type"] == "BPE"
            && is_plain
            && model["ignore_merges"].as_bool().unwrap_or_default() == self.ignore_merges
            && json["normalizer"] == self.normalizer
            && steps == self.steps
    }
}

/// llama.cpp's name for what a tokenizer.json does before merges.
///
/// # Errors
/// It has none.
pub fn name(json: &Value) -> Result<&'static str> {
    let found = Splitting::all().into_iter().find(|splitting| splitting.is_of(json));
    found.map(|splitting| splitting.name).ok_or_else(|| {
        invalid!(
            "the tokenizer splits or normalises text in a way that has no name here; those of Llama 3, Qwen, SmolLM and \
             GPT-2 have one: merge with asft merge, and convert with llama.cpp's convert_hf_to_gguf.py"
        )
    })
}

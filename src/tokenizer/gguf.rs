//! A tokenizer as GGUF files have it: tokens with their kinds, merges, and the name by which llama.cpp knows how to split
//! text before merges.

use super::Tokenizer;
use crate::checkpoint::gguf::Written;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde_json::{Value, json};

/// What precedes the byte-level merges of these families, as in their tokenizer.json, by llama.cpp's names.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Kinds of tokens by their numbers in files.
mod kind {
    pub const NORMAL: i32 = 1;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
}

impl Tokenizer {
    /// The metadata of a GGUF file whose embedding has `vocab_size` rows.
    ///
    /// # Errors
    /// A tokenizer other than the byte-level ones of Llama 3, Qwen, SmolLM and GPT-2; more tokens than rows.
    pub fn gguf(&self, vocab_size: usize) -> Result<Vec<(String, Written)>> {
        let json = self.run(|inner| inner.to_string(false))?;
        let json: Value = serde_json::from_str(&json.map_err(|e| invalid!("the tokenizer cannot be written: {e}"))?)?;
        let pre = splitting(&json)?;
        let (tokens, kinds) = self.tokens(vocab_size)?;
        let name = |name: &str| format!("tokenizer.ggml.{name}");
        let mut metadata = vec![
            (name("model"), Written::Text("gpt2".to_string())),
            (name("pre"), Written::Text(pre.to_string())),
            (name("tokens"), Written::Texts(tokens)),
            (name("token_type"), Written::Signed(kinds)),
            (name("merges"), Written::Texts(merges(&json)?)),
        ];
        let special = [
            ("bos_token", "bos_token_id"),
            ("eos_token", "eos_token_id"),
            ("unk_token", "unknown_token_id"),
            ("pad_token", "padding_token_id"),
        ];
        for (own, key) in special {
            let id = super::named(self.special_tokens(), own).and_then(|token| self.token_to_id(token));
            metadata.extend(id.map(|id| (name(key), Written::Whole(id))));
        }
        let bos = self.bos_token().and_then(|token| self.token_to_id(token));
        let adds_bos = bos.is_some() && self.encode("a", true)?.first().copied() == bos;
        metadata.push((name("add_bos_token"), Written::Flag(adds_bos)));
        metadata.extend(
            self.chat_template().map(|text| ("tokenizer.chat_template".to_string(), Written::Text(text.to_string()))),
        );
        Ok(metadata)
    }

    /// Every id's token and its kind.
    fn tokens(&self, vocab_size: usize) -> Result<(Vec<String>, Vec<i32>)> {
        ensure_valid!(
            self.vocab_size() <= vocab_size,
            "the tokenizer has {} tokens, and the model's vocab_size is {vocab_size}",
            self.vocab_size()
        );
        let count = u32::try_from(vocab_size)?;
        let token = |id| match self.inner.id_to_token(id) {
            Some(token) if self.is_added(id) && self.is_special(id) => (token, kind::CONTROL),
            Some(token) if self.is_added(id) => (token, kind::USER_DEFINED),
            Some(token) => (token, kind::NORMAL),
            // As llama.cpp's converter fills an embedding that is larger than the vocabulary.
            None => (format!("[PAD{id}]"), kind::UNUSED),
        };
        Ok((0..count).map(token).unzip())
    }
}

/// llama.cpp's name for how text is split before merges.
fn splitting(json: &Value) -> Result<&'static str> {
    let byte_level = |splits: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": splits});
    let split =
        |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let sequence = |first: Value, splits| json!([first, byte_level(splits)]);
    let known = [
        ("llama-bpe", sequence(split(LLAMA3), false)),
        ("qwen2", sequence(split(QWEN2), false)),
        ("smollm", sequence(json!({"type": "Digits", "individual_digits": true}), true)),
        ("gpt-2", json!([byte_level(true)])),
    ];
    let mut found = match &json["pre_tokenizer"] {
        Value::Object(step) if step.get("type").is_some_and(|kind| kind == "Sequence") => step["pretokenizers"].clone(),
        step => json!([step]),
    };
    for step in found.as_array_mut().into_iter().flatten() {
        // It changes no ids.
        step.as_object_mut().map(|step| step.remove("trim_offsets"));
    }
    let is_bpe = json["model"]["type"] == "BPE";
    known.into_iter().find(|(_, steps)| is_bpe && *steps == found).map(|(name, _)| name).ok_or_else(|| {
        invalid!(
            "the tokenizer splits text in a way that has no name here; those of Llama 3, Qwen, SmolLM and GPT-2 have one: \
             merge with asft merge, and convert with llama.cpp's convert_hf_to_gguf.py"
        )
    })
}

/// `a b` for each merge, in their order.
fn merges(json: &Value) -> Result<Vec<String>> {
    let merge = |merge: &Value| match merge {
        Value::String(text) => Some(text.clone()),
        pair => Some(format!("{} {}", pair.get(0)?.as_str()?, pair.get(1)?.as_str()?)),
    };
    let merges = json["model"]["merges"].as_array().and_then(|merges| merges.iter().map(merge).collect());
    merges.ok_or_else(|| invalid!("the tokenizer's merges are not pairs of texts"))
}

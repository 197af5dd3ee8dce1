//! A Hugging Face tokenizer folder: text to ids and back, its special tokens and its chat template.
//!
//! Reads `tokenizer.json` and, as transformers 4 and 5 write them, `tokenizer_config.json`, `special_tokens_map.json`,
//! `chat_template.jinja`, `generation_config.json` and `config.json`. Ids equal those of transformers: settings for
//! truncation and padding inside `tokenizer.json` are switched off. What surrounds a text is its post-processor's choice:
//! `add_bos_token` and `add_eos_token` do not count where there is a `tokenizer.json` (transformers 5.24; 4.57 honoured them
//! for Llama's classes).
//! Decoding never "cleans up" spaces: the text is exactly what the ids say.

mod gguf;
mod stand_ins;

pub use stand_ins::{ControlToken, StandIns};

use crate::untrusted;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokenizers::{AddedToken, Tokenizer as Inner};

/// Names of special tokens in tokenizer_config.json and special_tokens_map.json; templates see them too.
const SPECIAL_NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// All that a tokenizer is loaded from.
const FILES: [&str; 6] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
];

/// Ids of one text, and where in it each came from. All vectors have the same length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    pub ids: Vec<u32>,
    /// Byte range in the text, whitespace included. (0, 0) for a token that the tokenizer added by itself.
    pub offsets: Vec<(usize, usize)>,
    /// Whether the tokenizer added the token by itself (beginning or end of text).
    pub added: Vec<bool>,
}

/// A loaded tokenizer; cheap to copy and to share among threads.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
    /// (name, token), e.g. `("bos_token", "<s>")`, in the order of SPECIAL_NAMES.
    special_tokens: Vec<(String, String)>,
    special_ids: HashSet<u32>,
    added_ids: HashSet<u32>,
    eos_ids: Vec<u32>,
    chat_template: Option<String>,
    vocab_size: usize,
    dir: PathBuf,
}

impl Tokenizer {
    /// Loads the tokenizer of a Hugging Face model folder.
    ///
    /// # Errors
    /// No `tokenizer.json`; a file that is not what its name says; a special token whose id is not the declared one.
    pub fn load(dir: &Path) -> Result<Self> {
        let folder = dir.to_path_buf();
        untrusted::run(move || Self::read(&folder))
            .map_err(|why| invalid!("the tokenizer of {} cannot be used: {why}", dir.display()))?
    }

    fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        ensure_valid!(
            path.is_file(),
            "no tokenizer.json in {} (a tokenizer.model alone is not read: load the folder with transformers' \
             AutoTokenizer and save_pretrained it)",
            dir.display()
        );
        let mut inner = read_inner(&path)?;
        let config = read_object(&dir.join("tokenizer_config.json"))?;
        let special_tokens = special_tokens(&config, &read_object(&dir.join("special_tokens_map.json"))?);
        add_declared_tokens(&mut inner, &config, &special_tokens, dir)?;
        let id_of = |name: &str| named(&special_tokens, name).and_then(|token| inner.token_to_id(token));
        let mut eos_ids: Vec<u32> = id_of("eos_token").into_iter().collect();
        for id in generation_eos_ids(dir)? {
            if !eos_ids.contains(&id) {
                eos_ids.push(id);
            }
        }
        let added = inner.get_added_tokens_decoder();
        let special_ids = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id);
        let special_ids: HashSet<u32> = special_ids.chain(eos_ids.iter().copied()).collect();
        let added_ids = added.keys().copied().collect();
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
        ensure_valid!(vocab_size > 0, "{}: the vocabulary is empty", path.display());
        let chat_template = chat_template(dir, &config)?;
        let inner = Arc::new(inner);
        let dir = dir.to_path_buf();
        Ok(Self { inner, special_tokens, special_ids, added_ids, eos_ids, chat_template, vocab_size, dir })
    }

    /// Ids of `text`; `add_special_tokens` adds the tokenizer's own beginning and end of text, if it has any.
    ///
    /// # Errors
    /// Text that the vocabulary cannot express (a word-level model without an unknown token).
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let whole = text.to_string();
        let encoding = self.run(move |inner| inner.encode_fast(whole, add_special_tokens))?;
        let encoding = encoding.map_err(|e| invalid!("cannot tokenize {text:.80?}: {e}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Like [`Self::encode`], with the byte range of each token.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_with_offsets(&self, text: &str, add_special_tokens: bool) -> Result<Encoded> {
        let whole = text.to_string();
        self.run(move |inner| encode_with_offsets(inner, &whole, add_special_tokens))?
    }

    /// Text of `ids`.
    ///
    /// # Errors
    /// The decoder fails; ids outside the vocabulary are skipped, as in transformers.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        let ids = ids.to_vec();
        let text = self.run(move |inner| inner.decode(&ids, skip_special_tokens))?;
        text.map_err(|e| invalid!("cannot decode token ids: {e}"))
    }

    /// Runs a library call that is driven by the tokenizer's rules: a replacement that grows at each of many steps, or
    /// a regular expression, may make it take any amount of time.
    fn run<T: Send + 'static>(&self, work: impl FnOnce(&Inner) -> T + Send + 'static) -> Result<T> {
        let inner = self.inner.clone();
        untrusted::run(move || work(&inner)).map_err(|why| invalid!("the tokenizer cannot be used: {why}"))
    }

    /// The text that each of `ids` adds to that before it; joined, they are what [`Self::decode`] gives for all. A
    /// character of several tokens belongs to the last of them.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn pieces(&self, ids: &[u32]) -> Result<Vec<String>> {
        // A token's text may depend on the one before (a leading space of a text is dropped, say), so tokens from
        // `context` on are decoded with and without those from `fresh` on.
        let (mut context, mut fresh, mut pieces) = (0, 0, vec![]);
        for end in 1..=ids.len() {
            let before = self.decode(&ids[context..fresh], false)?;
            let after = self.decode(&ids[context..end], false)?;
            let piece = after.strip_prefix(before.as_str()).unwrap_or(&after);
            // A token may end inside a character.
            let whole = !piece.ends_with('\u{fffd}') || end == ids.len();
            pieces.push(if whole { piece.to_string() } else { String::new() });
            if whole {
                (context, fresh) = (fresh, end);
            }
        }
        Ok(pieces)
    }

    pub fn bos_token(&self) -> Option<&str> {
        named(&self.special_tokens, "bos_token")
    }

    pub fn eos_token(&self) -> Option<&str> {
        named(&self.special_tokens, "eos_token")
    }

    /// Id of [`Self::eos_token`].
    pub fn eos_id(&self) -> Option<u32> {
        self.eos_token().and_then(|token| self.token_to_id(token))
    }

    /// Ids that end generation: the eos token's first, then those of generation_config.json (else config.json).
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// A hash of the files that it was loaded from.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        for name in FILES {
            let path = self.dir.join(name);
            if path.is_file() {
                let bytes = std::fs::read(&path).map_err(|e| invalid!("cannot read {}: {e}", path.display()))?;
                hasher.update(format!("{name} {}\n", blake3::hash(&bytes).to_hex()).as_bytes());
            }
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Jinja source of the tokenizer's chat template.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// (name, token) of the special tokens that a chat template sees.
    pub fn special_tokens(&self) -> &[(String, String)] {
        &self.special_tokens
    }

    /// Largest id + 1, added tokens included. A model's embedding may be larger.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Checks that the tokens of another file, by their ids, are these. Tokens that were added to the vocabulary may be
    /// written in another way there.
    ///
    /// # Errors
    /// One that differs.
    pub fn check_vocabulary(&self, tokens: &[String]) -> Result<()> {
        let mut differing = (0u32..).zip(tokens).filter_map(|(id, token)| {
            let own = self.inner.id_to_token(id).filter(|own| own != token && !self.is_added(id))?;
            Some((id, token, own))
        });
        let first = differing.next();
        if let Some((id, token, own)) = first {
            let more = differing.count();
            return Err(invalid!(
                "token {id} is {own:?} in the one and {token:?} in the other, and {more} more differ"
            ));
        }
        let missing = self.inner.get_vocab_size(false).saturating_sub(tokens.len());
        ensure_valid!(missing == 0, "the one has {missing} tokens more than the other");
        Ok(())
    }

    /// Whether `id` is a control token (beginning or end of text or turn, padding), not text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// Whether `id` was added to the vocabulary as a whole: special tokens, and others that are never split.
    pub fn is_added(&self, id: u32) -> bool {
        self.added_ids.contains(&id)
    }
}

fn encode_with_offsets(inner: &Inner, text: &str, add_special_tokens: bool) -> Result<Encoded> {
    let encoding = inner.encode(text, add_special_tokens).map_err(|e| invalid!("cannot tokenize {text:.80?}: {e}"))?;
    Ok(Encoded {
        ids: encoding.get_ids().to_vec(),
        offsets: encoding.get_offsets().to_vec(),
        added: encoding.get_special_tokens_mask().iter().map(|&m| m == 1).collect(),
    })
}

fn named<'a>(tokens: &'a [(String, String)], name: &str) -> Option<&'a str> {
    tokens.iter().find(|(n, _)| n == name).map(|(_, token)| token.as_str())
}

/// tokenizer.json without truncation and padding, and with offsets that keep leading whitespace (ids are unaffected).
fn read_inner(path: &Path) -> Result<Inner> {
    let mut json = Value::Object(read_object(path)?);
    json["truncation"] = Value::Null;
    json["padding"] = Value::Null;
    keep_whitespace_in_offsets(&mut json["post_processor"]);
    Inner::from_bytes(serde_json::to_vec(&json)?)
        .map_err(|e| invalid!("{} is not a tokenizer this program can read: {e}", path.display()))
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

/// A token as a string or as transformers 4's `{"content": ...}`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

fn special_tokens(config: &Map<String, Value>, fallback: &Map<String, Value>) -> Vec<(String, String)> {
    // An explicit null in tokenizer_config.json means "none" to transformers, whatever the older file says.
    let find = |name: &&str| {
        let value = config.get(*name).or_else(|| fallback.get(*name))?;
        Some((name.to_string(), token_text(value)?.to_string()))
    };
    SPECIAL_NAMES.iter().filter_map(find).collect()
}

/// Adds transformers 4's `added_tokens_decoder`, and marks the named special tokens as special.
fn add_declared_tokens(
    inner: &mut Inner,
    config: &Map<String, Value>,
    special_tokens: &[(String, String)],
    dir: &Path,
) -> Result<()> {
    let mut declared = vec![];
    for (id, token) in config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten() {
        let id: u32 = id.parse().map_err(|_| bad_token(dir, id, token))?;
        let text = token_text(token).ok_or_else(|| bad_token(dir, &id.to_string(), token))?;
        declared.push((id, text, token));
    }
    declared.sort_by_key(|(id, ..)| *id);
    for (id, text, token) in declared {
        let flag = |name: &str| token.get(name).and_then(Value::as_bool).unwrap_or(false);
        if inner.token_to_id(text).is_none() {
            let added = AddedToken::from(text, flag("special"))
                .single_word(flag("single_word"))
                .lstrip(flag("lstrip"))
                .rstrip(flag("rstrip"))
                .normalized(token.get("normalized").and_then(Value::as_bool).unwrap_or(!flag("special")));
            add_token(inner, added, dir)?;
        }
        let got = inner.token_to_id(text);
        ensure_valid!(
            got == Some(id),
            "{}: tokenizer_config.json gives token {text:?} the id {id}, tokenizer.json gives {got:?}; use the two \
             files of one model",
            dir.display()
        );
    }
    for (_, text) in special_tokens {
        let known = inner.get_added_tokens_decoder().values().any(|added| added.content == *text);
        if !known && inner.token_to_id(text).is_some() {
            add_token(inner, AddedToken::from(text.as_str(), true).normalized(false), dir)?;
        }
    }
    Ok(())
}

fn add_token(inner: &mut Inner, token: AddedToken, dir: &Path) -> Result<()> {
    let text = token.content.clone();
    let added = if token.special { inner.add_special_tokens([token]) } else { inner.add_tokens([token]) };
    added.map_err(|e| invalid!("{}: cannot add token {text:?}: {e}", dir.display()))?;
    Ok(())
}

fn bad_token(dir: &Path, id: &str, token: &Value) -> anyhow::Error {
    invalid!(
        "{}: tokenizer_config.json: added_tokens_decoder holds {id:?}: {token}; expected a number and a token",
        dir.display()
    )
}

/// `eos_token_id` (an int or a list) of generation_config.json, else of config.json.
fn generation_eos_ids(dir: &Path) -> Result<Vec<u32>> {
    for file in ["generation_config.json", "config.json"] {
        let config = read_object(&dir.join(file))?;
        let Some(value) = config.get("eos_token_id").filter(|v| !v.is_null()) else { continue };
        let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match value {
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
    let path = dir.join("chat_template.jinja");
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

#[cfg(test)]
mod tests;

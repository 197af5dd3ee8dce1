//! A model's tokenizer: text to ids and back, its special tokens and its chat template.
//!
//! It comes from a Hugging Face folder or, where that is exact, from a GGUF file. Ids equal those of transformers: settings for
//! truncation and padding inside `tokenizer.json` are switched off. What surrounds a text is its post-processor's choice:
//! `add_bos_token` and `add_eos_token` do not count where there is a `tokenizer.json` (transformers 5.24; 4.57 honoured them
//! for Llama's classes).
//! Decoding never "cleans up" spaces: the text is exactly what the ids say.

mod gguf;
mod pieces;
mod source;
mod stand_ins;

pub use gguf::unpack;
pub use pieces::Pieces;
pub use source::hash_companions;
pub use stand_ins::{ControlToken, StandIns};

use crate::checkpoint::is_gguf;
use crate::untrusted;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde_json::{Map, Value};
use source::Source;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokenizers::{AddedToken, Tokenizer as Inner};

/// Names of special tokens in tokenizer_config.json and special_tokens_map.json; templates see them too.
const SPECIAL_NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

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
    /// What it was loaded from.
    place: PathBuf,
}

impl Tokenizer {
    /// Loads the tokenizer of a Hugging Face model folder, or of a GGUF file.
    ///
    /// # Errors
    /// No `tokenizer.json`; a file that is not what its name says; a special token whose id is not the declared one; a
    /// GGUF file that does not say all that its tokenizer does.
    pub fn load(place: &Path) -> Result<Self> {
        let own = place.to_path_buf();
        untrusted::run(move || Self::read(&own))
            .map_err(|why| why.error(&format!("the tokenizer of {}", place.display())))?
    }

    fn read(place: &Path) -> Result<Self> {
        let mut source = if is_gguf(place) { gguf::source(place) } else { Source::of_folder(place) }?;
        let special_tokens = special_tokens(&source.config, &source.special);
        let mut inner = source.inner(place)?;
        add_declared_tokens(&mut inner, &source.config, &special_tokens, place)?;
        let id_of = |name: &str| named(&special_tokens, name).and_then(|token| inner.token_to_id(token));
        let mut eos_ids: Vec<u32> = id_of("eos_token").into_iter().collect();
        for id in source.eos_ids {
            if !eos_ids.contains(&id) {
                eos_ids.push(id);
            }
        }
        let added = inner.get_added_tokens_decoder();
        let special_ids = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id);
        let special_ids: HashSet<u32> = special_ids.chain(eos_ids.iter().copied()).collect();
        let added_ids = added.keys().copied().collect();
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
        ensure_valid!(vocab_size > 0, "{}: the vocabulary is empty", place.display());
        let (chat_template, inner, place) = (source.template, Arc::new(inner), place.to_path_buf());
        Ok(Self { inner, special_tokens, special_ids, added_ids, eos_ids, chat_template, vocab_size, place })
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
        untrusted::run(move || work(&inner)).map_err(|why| why.error("the tokenizer"))
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

    /// A hash of what it was loaded from.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        hash_companions(&self.place, &mut hasher)?;
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

#[cfg(test)]
mod tests;

//! A tokenizer as a GGUF file's metadata.

use super::keys::{ENDS, SPECIAL};
use super::{kind, splitting};
use crate::checkpoint::gguf::Written;
use crate::tokenizer::{Tokenizer, named};
use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde_json::Value;

impl Tokenizer {
    /// The metadata of a GGUF file whose embedding has `vocab_size` rows.
    ///
    /// # Errors
    /// A tokenizer other than the byte-level ones of Llama 3, Qwen, SmolLM and GPT-2; more tokens than rows.
    pub fn gguf(&self, vocab_size: usize) -> Result<Vec<(String, Written)>> {
        let json = self.run(|inner| inner.to_string(false))?;
        let json: Value = serde_json::from_str(&json.map_err(|e| invalid!("the tokenizer cannot be written: {e}"))?)?;
        let pre = splitting::name(&json)?;
        let (tokens, kinds) = self.tokens(vocab_size)?;
        let name = |name: &str| format!("tokenizer.ggml.{name}");
        let mut metadata = vec![
            (name("model"), Written::Text("gpt2".to_string())),
            (name("pre"), Written::Text(pre.to_string())),
            (name("tokens"), Written::Texts(tokens)),
            (name("token_type"), Written::Signed(kinds)),
            (name("merges"), Written::Texts(merges(&json)?)),
        ];
        for (own, key) in SPECIAL {
            let id = named(self.special_tokens(), own).and_then(|token| self.token_to_id(token));
            metadata.extend(id.map(|id| (name(key), Written::Whole(id))));
        }
        let [_, others @ ..] = ENDS;
        let ends: Vec<u32> = self.eos_ids().iter().copied().filter(|id| Some(*id) != self.eos_id()).collect();
        ensure_valid!(
            ends.len() <= others.len(),
            "{} tokens end the model's answers besides its eos token, and GGUF has keys for {}",
            ends.len(),
            others.len()
        );
        metadata.extend(others.into_iter().zip(ends).map(|(key, id)| (name(key), Written::Whole(id))));
        let (bos, eos) = self.surroundings()?;
        metadata.push((name("add_bos_token"), Written::Flag(bos)));
        metadata.push((name("add_eos_token"), Written::Flag(eos)));
        metadata.extend(
            self.chat_template().map(|text| ("tokenizer.chat_template".to_string(), Written::Text(text.to_string()))),
        );
        Ok(metadata)
    }

    /// Whether the tokenizer puts the bos token before a text, and the eos token after it.
    ///
    /// # Errors
    /// It puts anything else there.
    fn surroundings(&self) -> Result<(bool, bool)> {
        let id = |token: Option<&str>| token.and_then(|token| self.token_to_id(token));
        let (bos, eos) = (id(self.bos_token()), self.eos_id());
        let (plain, whole) = (self.encode("a", false)?, self.encode("a", true)?);
        for (adds_bos, adds_eos) in [(false, false), (true, false), (false, true), (true, true)] {
            let before = bos.filter(|_| adds_bos).into_iter();
            let after = eos.filter(|_| adds_eos).into_iter();
            if before.chain(plain.iter().copied()).chain(after).eq(whole.iter().copied()) {
                return Ok((adds_bos, adds_eos));
            }
        }
        Err(invalid!(
            "the tokenizer puts other tokens around a text than bos and eos ({whole:?} for {plain:?}), which GGUF cannot say"
        ))
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

/// `a b` for each merge, in their order.
fn merges(json: &Value) -> Result<Vec<String>> {
    let merge = |merge: &Value| match merge {
        Value::String(text) => Some(text.clone()),
        pair => Some(format!("{} {}", pair.get(0)?.as_str()?, pair.get(1)?.as_str()?)),
    };
    let merges = json["model"]["merges"].as_array().and_then(|merges| merges.iter().map(merge).collect());
    merges.ok_or_else(|| invalid!("the tokenizer's merges are not pairs of texts"))
}

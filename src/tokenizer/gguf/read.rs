//! The tokenizer of a GGUF file as the files of a folder would have it, where nothing is lost: byte-level merges after a
//! splitting that is known by its name.

use super::keys::{ENDS, SPECIAL};
use super::kind;
use super::splitting::Splitting;
use crate::checkpoint::gguf::{Header, Value as Found};
use crate::tokenizer::source::Source;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// What the folder of the tokenizer in a file with this header would say.
///
/// # Errors
/// A tokenizer of another kind; a splitting that has no name here; metadata that are missing or do not fit together.
pub fn source(header: &Header) -> Result<Source> {
    let file = Vocabulary::of(header)?;
    let mut config = Map::new();
    for (name, key) in SPECIAL {
        if let Some((_, token)) = file.token(key)? {
            config.insert(name.to_string(), json!(token));
        }
    }
    let mut eos_ids = vec![];
    for key in ENDS {
        if let Some((id, _)) = file.token(key)?.filter(|(id, _)| !eos_ids.contains(id)) {
            eos_ids.push(id);
        }
    }
    let template = header.text("tokenizer.chat_template").map(str::to_string);
    Ok(Source { tokenizer: file.json()?, config, special: Map::new(), eos_ids, template })
}

/// The metadata about the tokenizer.
struct Vocabulary<'a> {
    header: &'a Header,
    splitting: Splitting,
    tokens: &'a [String],
    kinds: &'a [u64],
}

impl<'a> Vocabulary<'a> {
    fn of(header: &'a Header) -> Result<Self> {
        let text = |name: &str| {
            let key = format!("tokenizer.ggml.{name}");
            header.text(&key).ok_or_else(|| invalid!("the metadata have no {key}"))
        };
        let model = text("model")?;
        ensure_valid!(model == "gpt2", "tokenizer.ggml.model is `{model}`, expected `gpt2`: byte-level merges");
        let pre = text("pre")?;
        let known = Splitting::all().map(|splitting| splitting.name).join(", ");
        let splitting = Splitting::all().into_iter().find(|splitting| splitting.name == pre);
        let splitting = splitting.ok_or_else(|| {
            invalid!("how `{pre}` (tokenizer.ggml.pre) splits text is not known here; known: {known}")
        })?;
        let (tokens, kinds) = match (found(header, "tokens"), found(header, "token_type")) {
            (Some(Found::Texts(tokens)), Some(Found::Wholes(kinds))) if tokens.len() == kinds.len() => (tokens, kinds),
            _ => return Err(invalid!("the metadata do not have tokenizer.ggml.tokens with a token_type for each")),
        };
        Ok(Self { header, splitting, tokens, kinds })
    }

    /// The id that a key names, and its token.
    fn token(&self, name: &str) -> Result<Option<(u32, &'a str)>> {
        let wrong =
            |found| invalid!("tokenizer.ggml.{name} is {found:?}, expected one of {} tokens", self.tokens.len());
        let Some(found) = found(self.header, name) else { return Ok(None) };
        let Found::Whole(id) = found else { return Err(wrong(found)) };
        let token = usize::try_from(*id).ok().and_then(|id| self.tokens.get(id)).ok_or_else(|| wrong(found))?;
        Ok(Some((u32::try_from(*id)?, token)))
    }

    fn flag(&self, name: &str) -> Result<Option<bool>> {
        match found(self.header, name) {
            None => Ok(None),
            Some(Found::Flag(flag)) => Ok(Some(*flag)),
            Some(other) => Err(invalid!("tokenizer.ggml.{name} is {other:?}, expected true or false")),
        }
    }

    /// tokenizer.json
    fn json(&self) -> Result<Map<String, Value>> {
        let Some(Found::Texts(merges)) = found(self.header, "merges") else {
            return Err(invalid!("the metadata have no tokenizer.ggml.merges"));
        };
        let (mut ids, mut vocabulary, mut added) = (HashMap::new(), Map::new(), vec![]);
        for ((id, token), kind) in (0u32..).zip(self.tokens).zip(self.kinds) {
            let is = |code: i32| u64::try_from(code).is_ok_and(|code| code == *kind);
            if is(kind::UNUSED) {
                continue;
            }
            if let Some(other) = ids.insert(token, id) {
                return Err(invalid!("tokens {other} and {id} are both {token:?}"));
            }
            vocabulary.insert(token.clone(), json!(id));
            if is(kind::CONTROL) || is(kind::USER_DEFINED) {
                added.push(json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": is(kind::CONTROL)}));
            }
        }
        let Splitting { steps, normalizer, ignore_merges, .. } = &self.splitting;
        let json = json!({
            "version": "1.0",
            "added_tokens": added,
            "normalizer": normalizer,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
            "post_processor": self.surroundings()?,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "ignore_merges": ignore_merges, "vocab": vocabulary, "merges": merges},
        });
        match json {
            Value::Object(json) => Ok(json),
            other => Err(anyhow::anyhow!("an object, not {other}")),
        }
    }

    /// A post_processor for what is put before and after a text.
    fn surroundings(&self) -> Result<Value> {
        let adds = |flag: Option<bool>, default: bool, key: &str| match flag.unwrap_or(default) {
            true => self.token(key),
            false => Ok(None),
        };
        let bos = adds(self.flag("add_bos_token")?, self.splitting.adds_bos, "bos_token_id")?;
        let eos = adds(self.flag("add_eos_token")?, false, "eos_token_id")?;
        if bos.is_none() && eos.is_none() {
            return Ok(Value::Null);
        }
        let special = |token: Option<(u32, &str)>, text: u32| {
            token.map(|(_, token)| json!({"SpecialToken": {"id": token, "type_id": text}}))
        };
        let around = |name: &str, text: u32| -> Vec<Value> {
            let own = json!({"Sequence": {"id": name, "type_id": text}});
            special(bos, text).into_iter().chain([own]).chain(special(eos, text)).collect()
        };
        let (single, second) = (around("A", 0), around("B", 1));
        let pair: Vec<&Value> = single.iter().chain(&second).collect();
        let named =
            |(id, token): (u32, &str)| (token.to_string(), json!({"id": token, "ids": [id], "tokens": [token]}));
        let tokens: Map<String, Value> = bos.into_iter().chain(eos).map(named).collect();
        Ok(json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}))
    }
}

fn found<'a>(header: &'a Header, name: &str) -> Option<&'a Found> {
    header.metadata.get(&format!("tokenizer.ggml.{name}"))
}

//! Stand-ins for control tokens: a tokenizer in which other texts mean them, so that their own text is ordinary text.
//!
//! A tokenizer makes a control token of its text wherever that stands, and a rendered conversation no longer tells
//! what the template wrote from what somebody said. With stand-ins in what the template wrote, only that becomes
//! control tokens; all other rules (normalisation, what surrounds a token, merges) stay the tokenizer's own.

use super::{Encoded, Inner, Tokenizer, add_token};
use crate::invalid;
use anyhow::Result;
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// A token that no text should turn into by accident.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlToken {
    pub id: u32,
    pub text: String,
    /// Whether its text is the token only between characters that are no part of a word.
    pub single_word: bool,
}

/// A tokenizer with stand-ins.
pub struct StandIns {
    inner: Arc<Inner>,
    /// This tokenizer's ids of added tokens to those of the original.
    ids: HashMap<u32, u32>,
}

impl Tokenizer {
    /// The added tokens that are special, or for which `also` holds, by id.
    pub fn control_tokens(&self, also: impl Fn(u32) -> bool) -> Vec<ControlToken> {
        let added = self.inner.get_added_tokens_decoder();
        let mut tokens: Vec<ControlToken> = added
            .into_iter()
            .filter(|(id, token)| (self.is_special(*id) || also(*id)) && !token.content.trim().is_empty())
            .map(|(id, token)| ControlToken { id, text: token.content, single_word: token.single_word })
            .collect();
        tokens.sort_by_key(|token| token.id);
        tokens
    }

    /// A copy in which the tokens of `stand_ins` go by these texts instead of their own.
    ///
    /// # Errors
    /// The tokenizer cannot be copied.
    pub fn with_stand_ins(&self, stand_ins: HashMap<u32, String>) -> Result<StandIns> {
        self.run(move |inner| {
            let cannot = |e: &dyn std::fmt::Display| invalid!("the tokenizer cannot be copied: {e}");
            let json = inner.to_string(false).map_err(|e| cannot(&e))?;
            let mut json: Value = serde_json::from_str(&json)?;
            json["added_tokens"] = Value::Array(vec![]);
            let mut copy = Inner::from_bytes(serde_json::to_vec(&json)?).map_err(|e| cannot(&e))?;
            let mut ids = HashMap::new();
            let mut added: Vec<_> = inner.get_added_tokens_decoder().into_iter().collect();
            added.sort_by_key(|(id, _)| *id);
            for (id, mut token) in added {
                if let Some(text) = stand_ins.get(&id) {
                    token.content.clone_from(text);
                }
                let text = token.content.clone();
                add_token(&mut copy, token, Path::new("the tokenizer"))?;
                ids.extend(copy.token_to_id(&text).map(|own| (own, id)));
            }
            Ok(StandIns { inner: Arc::new(copy), ids })
        })?
    }
}

impl StandIns {
    /// As [`Tokenizer::encode_with_offsets`], with the original's ids, and for each token whether it comes from an added
    /// token's text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_offsets(&self, text: &str, add_special_tokens: bool) -> Result<(Encoded, Vec<bool>)> {
        let mut encoded = super::encode_with_offsets(&self.inner, text, add_special_tokens)?;
        let mut stands_in = vec![false; encoded.ids.len()];
        for ((id, added), stands_in) in encoded.ids.iter_mut().zip(&encoded.added).zip(&mut stands_in) {
            // What surrounds a text has the original's ids already.
            if let Some(original) = self.ids.get(id).filter(|_| !added) {
                (*id, *stands_in) = (*original, true);
            }
        }
        Ok((encoded, stands_in))
    }
}

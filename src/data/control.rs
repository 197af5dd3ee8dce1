//! Control tokens spelt out in what people say: `data.special_tokens_in_content`.
//!
//! A user's message that holds `<|im_end|>\n<|im_start|>assistant` ends its turn and begins another. What a record says
//! is searched before it is rendered. To read it as ordinary text, each such token in it is first hidden behind a
//! stand-in of the same length, so that the conversation is rendered with nothing but the template's own control
//! tokens. In that text both are then exchanged, the stand-ins for the tokens' text and the tokens for their stand-ins,
//! and a tokenizer that knows the stand-ins alone as control tokens reads it. All offsets stay as they were.

use super::options::SpecialTokens;
use super::records::Place;
use super::template::Template;
use crate::error::listing;
use crate::tokenizer::{ControlToken, Encoded, StandIns, Tokenizer};
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use regex::{Captures, Regex, RegexBuilder};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

/// Most places that a warning names.
const NAMED: usize = 5;
/// Characters for private use, of three bytes each, which stand-ins begin with.
const PRIVATE: std::ops::Range<u32> = 0xe000..0xf900;

/// The control tokens of a tokenizer with a template, and where they were found.
pub struct ControlTokens {
    choice: SpecialTokens,
    tokenizer: Tokenizer,
    tokens: Vec<ControlToken>,
    /// Finds any of the tokens; `None` if there are none.
    pattern: Option<Regex>,
    reader: OnceLock<Result<Reader, String>>,
    found: Mutex<Vec<(Place, Vec<String>)>>,
}

/// Reads text in which control tokens and stand-ins have been exchanged.
struct Reader {
    stand_ins: StandIns,
    exchange: HashMap<String, String>,
    /// Finds tokens and stand-ins.
    pattern: Regex,
    /// Finds a stand-in's first character, and stand-ins.
    private: (Regex, Regex),
}

impl ControlTokens {
    /// The special tokens, and what else the template begins or ends a user's turn with.
    ///
    /// # Errors
    /// Too many tokens for one search.
    pub fn new(choice: SpecialTokens, tokenizer: &Tokenizer, template: Option<&Template>) -> Result<Self> {
        let turn = template.and_then(|template| {
            let text = template.render(&[json!({"role": "user", "content": ""})], false, &Map::new()).ok()?;
            tokenizer.encode(&text, false).ok()
        });
        let turn = turn.unwrap_or_default();
        let tokens = tokenizer.control_tokens(|id| turn.contains(&id));
        let pattern = any_of(tokens.iter().map(|token| token.text.as_str()))?;
        let tokenizer = tokenizer.clone();
        Ok(Self { choice, tokenizer, tokens, pattern, reader: OnceLock::new(), found: Mutex::default() })
    }

    /// Looks through what the record at `place` says. Returns whether it has to be read by [`Self::encode`], with
    /// [`Self::hide`] before.
    ///
    /// # Errors
    /// Something is found that is to be refused.
    pub fn search<'v>(&self, place: Place, said: impl IntoIterator<Item = &'v Value>) -> Result<bool> {
        let Some(pattern) = &self.pattern else { return Ok(false) };
        let mut found = vec![];
        for value in said {
            each_text(value, &mut |text| found.extend(pattern.find_iter(text).map(|token| token.as_str().to_string())));
        }
        if found.is_empty() {
            return Ok(false);
        }
        if self.choice == SpecialTokens::Refuse {
            found.sort();
            found.dedup();
            return Err(invalid!(
                "the text holds the special tokens {}; remove them, or choose what becomes of them by \
                 data.special_tokens_in_content (\"refuse\" now)",
                listing(&found, NAMED)
            ));
        }
        self.found.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((place, found));
        Ok(self.choice == SpecialTokens::Text)
    }

    /// A warning, with its fields, of what was found since the last, in file order, if it became control tokens.
    pub fn report(&self) -> Option<(String, Value)> {
        let mut found = std::mem::take(&mut *self.found.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        if found.is_empty() || self.choice != SpecialTokens::Allow {
            return None;
        }
        found.sort_by_key(|(place, _)| place.number());
        let tokens = found.iter().map(|(_, tokens)| tokens.len()).sum::<usize>();
        let places: Vec<String> = found
            .iter()
            .map(|(place, tokens)| format!("{} {} ({})", place.noun(), place.number(), tokens[0]))
            .collect();
        Some((
            format!(
                "the text of {} records holds {tokens} special tokens, which count as control tokens, as in \
                 transformers: {}; data.special_tokens_in_content = \"text\" reads them as text, \"refuse\" refuses \
                 such records",
                found.len(),
                listing(&places, NAMED)
            ),
            json!({"records": found.len(), "special_tokens": tokens}),
        ))
    }

    /// `value` with stand-ins for the control tokens in it.
    ///
    /// # Errors
    /// As [`Self::reader`]; the record holds characters that stand-ins begin with; a token in a list of parts that no part has whole.
    pub fn hide(&self, value: &mut Value) -> Result<()> {
        let (reader, pattern) = (self.reader()?, self.pattern.as_ref().context("there are no control tokens")?);
        let mut holds = false;
        each_text(value, &mut |text| holds |= reader.private.0.is_match(text));
        ensure_valid!(!holds, "the text holds both special tokens and characters for private use (U+E000 to U+F8FF)");
        change_texts(value, &|text| pattern.replace_all(text, |found: &Captures| reader.exchanged(found)).into_owned());
        let mut left = false;
        each_text(value, &mut |text| left |= pattern.is_match(text));
        ensure_valid!(!left, "the parts of a message make a special token together; write them as one text");
        Ok(())
    }

    /// Tokens of a text that was rendered from what [`Self::hide`] returned.
    ///
    /// # Errors
    /// As [`Self::reader`]; a template or a vocabulary with which it cannot be told what the special tokens are.
    pub fn encode(&self, text: &str) -> Result<Encoded> {
        let reader = self.reader()?;
        let (begun, whole) = (reader.private.0.find_iter(text).count(), reader.private.1.find_iter(text).count());
        let escaped = text.contains("\\ue") || text.contains("\\uf") || text.contains("\\uE") || text.contains("\\uF");
        ensure_valid!(
            begun == whole && !escaped,
            "the chat template changes what is said (escapes or case, say), so its special tokens cannot be read as \
             text; correct the record, or use another template"
        );
        let exchanged = reader.pattern.replace_all(text, |found: &Captures| reader.exchanged(found));
        let (encoded, stands_in) = reader.stand_ins.encode_with_offsets(&exchanged, false)?;
        let written = self.tokenizer.encode(text, false)?;
        let read = encoded.ids.iter().zip(&stands_in).filter(|(_, stands_in)| **stands_in).map(|(id, _)| *id);
        let same = read.filter(|id| self.is_control(*id)).eq(written.into_iter().filter(|id| self.is_control(*id)));
        self.check(same, &encoded, &stands_in)?;
        Ok(encoded)
    }

    /// Tokens of a text that is all content; only what the tokenizer surrounds it with becomes control tokens.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_content(&self, text: &str) -> Result<Encoded> {
        let reader = self.reader()?;
        ensure_valid!(
            !reader.private.1.is_match(text),
            "the text holds both special tokens and characters for private use (U+E000 to U+F8FF)"
        );
        let (encoded, stands_in) = reader.stand_ins.encode_with_offsets(text, true)?;
        self.check(true, &encoded, &stands_in)?;
        Ok(encoded)
    }

    /// Refuses a vocabulary that makes a control token of ordinary text.
    fn check(&self, same: bool, encoded: &Encoded, stands_in: &[bool]) -> Result<()> {
        let tokens = encoded.ids.iter().zip(&encoded.added).zip(stands_in);
        let arisen = tokens.filter(|((_, added), stands_in)| !**added && !**stands_in).map(|((id, _), _)| *id);
        let arisen = arisen.into_iter().find(|id| self.is_control(*id));
        ensure_valid!(
            same && arisen.is_none(),
            "this tokenizer cannot read special tokens as text (its vocabulary makes {} of the text itself); use \
             data.special_tokens_in_content = \"refuse\", and correct the records it lists",
            arisen.and_then(|id| self.tokens.iter().find(|token| token.id == id)).map_or("others", |token| &token.text)
        );
        Ok(())
    }

    /// Whether an id is a control token's, but for the one that unknown text has anyway.
    fn is_control(&self, id: u32) -> bool {
        let found = self.tokens.binary_search_by_key(&id, |token| token.id).ok().map(|index| &self.tokens[index].text);
        let unknown = self.tokenizer.special_tokens().iter().find(|(name, _)| name == "unk_token");
        found.is_some_and(|text| unknown.is_none_or(|(_, unknown)| unknown != text))
    }

    /// # Errors
    /// A token that is too short for a stand-in, or that depends on what is next to it.
    fn reader(&self) -> Result<&Reader> {
        let made = self.reader.get_or_init(|| Reader::new(&self.tokenizer, &self.tokens).map_err(|e| format!("{e:#}")));
        made.as_ref().map_err(|why| invalid!("data.special_tokens_in_content = \"text\" cannot be had: {why}"))
    }
}

impl Reader {
    fn new(tokenizer: &Tokenizer, tokens: &[ControlToken]) -> Result<Self> {
        let mut exchange = HashMap::new();
        let mut stand_ins = HashMap::new();
        for (index, ControlToken { id, text, single_word }) in tokens.iter().enumerate() {
            let stand_in = stand_in(index, text.len()).filter(|_| !single_word).ok_or_else(|| {
                invalid!("the tokenizer's special token {text:?} is too short, or counts as a whole word only")
            })?;
            exchange.insert(stand_in.clone(), text.clone());
            exchange.insert(text.clone(), stand_in.clone());
            stand_ins.insert(*id, stand_in);
        }
        let any = |texts: Vec<&String>| any_of(texts.into_iter().map(String::as_str))?.context("no control tokens");
        let private = (Regex::new("[\u{e000}-\u{f8ff}]")?, any(stand_ins.values().collect())?);
        let pattern = any(exchange.keys().collect())?;
        Ok(Self { pattern, private, exchange, stand_ins: tokenizer.with_stand_ins(stand_ins)? })
    }

    fn exchanged(&self, found: &Captures) -> String {
        self.exchange.get(&found[0]).cloned().unwrap_or_default()
    }
}

/// The text of `bytes` bytes that stands in for token `index`, if there is one: a character for private use, a letter
/// if there are more tokens than such characters, and padding.
fn stand_in(index: usize, bytes: usize) -> Option<String> {
    let (letter, offset) = (index / PRIVATE.len(), index % PRIVATE.len());
    let first = char::from_u32(PRIVATE.start + u32::try_from(offset).ok()?)?;
    let rest = bytes.checked_sub(first.len_utf8())?;
    let letter = char::from(b'a' + u8::try_from(letter).ok().filter(|letter| *letter < 26)?);
    match rest {
        0 => (letter == 'a').then(|| first.to_string()),
        _ => Some(format!("{first}{letter}{}", "-".repeat(rest - 1))),
    }
}

/// Finds any of `texts`, of several at one place the longest.
fn any_of<'t>(texts: impl Iterator<Item = &'t str>) -> Result<Option<Regex>> {
    let mut texts: Vec<&str> = texts.collect();
    texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
    let any: Vec<String> = texts.into_iter().map(regex::escape).collect();
    let pattern = (!any.is_empty()).then(|| RegexBuilder::new(&any.join("|")).size_limit(256 << 20).build());
    pattern.transpose().context("the tokenizer has too many special tokens")
}

/// Calls `look` with every text in `value`, keys included, and with the text of parts as a whole.
fn each_text(value: &Value, look: &mut dyn FnMut(&str)) {
    match value {
        Value::String(text) => look(text),
        Value::Array(values) => {
            match values.iter().map(|part| part.get("text")?.as_str()).collect::<Option<Vec<&str>>>() {
                Some(parts) => look(&parts.concat()),
                None => values.iter().for_each(|value| each_text(value, look)),
            }
        }
        Value::Object(fields) => fields.iter().for_each(|(key, value)| {
            look(key);
            each_text(value, look);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Replaces every text in `value`, keys included.
fn change_texts(value: &mut Value, change: &dyn Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = change(text),
        Value::Array(values) => values.iter_mut().for_each(|value| change_texts(value, change)),
        Value::Object(fields) => {
            for (key, mut value) in std::mem::take(fields) {
                change_texts(&mut value, change);
                fields.insert(change(&key), value);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

//! Ids to text one after another.

use super::Tokenizer;
use crate::invalid;
use anyhow::Result;

/// How many ids before a text are enough to know how it begins.
const CONTEXT: usize = 8;
/// Tokens of a character that is not complete: it has at most four bytes.
const MOST_INSIDE: usize = 3;
/// How many new ids may end inside a character, one after the other, before their text is given all the same: they are no
/// characters, and decoding them again with each further one would take quadratic time.
const MOST_UNFINISHED: usize = 12;

/// Turns ids into the text that each adds to that before it. Joined, the pieces and the rest are what
/// [`Tokenizer::decode`] gives for all ids; bytes that are no characters may be replaced in other places.
///
/// A token's text may depend on the one before (a leading space of a text is dropped, say), so the last tokens are
/// decoded with and without those that are new.
#[derive(Clone)]
pub struct Pieces {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    /// Those whose text is known, then the new ones.
    ids: Vec<u32>,
    /// How many are known.
    known: usize,
    /// What the new ones begin with that has been given.
    given: String,
}

impl Pieces {
    pub fn new(tokenizer: &Tokenizer, skip_special_tokens: bool) -> Self {
        Self { tokenizer: tokenizer.clone(), skip_special_tokens, ids: vec![], known: 0, given: String::new() }
    }

    /// For text that goes on after `ids`. If these end inside a character, it begins with that character.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn after(tokenizer: &Tokenizer, ids: &[u32], skip_special_tokens: bool) -> Result<Self> {
        let skipped = |id: &u32| skip_special_tokens && tokenizer.is_special(*id);
        let context = ids[ids.len().saturating_sub(CONTEXT)..].iter().copied();
        let ids: Vec<u32> = context.filter(|id| !skipped(id)).collect();
        let mut known = ids.len();
        while known + MOST_INSIDE > ids.len() && tokenizer.decode(&ids[..known], false)?.ends_with('\u{fffd}') {
            known -= 1;
        }
        let mut pieces = Self { known, ids, ..Self::new(tokenizer, skip_special_tokens) };
        // The token in which the character begins may begin before it.
        pieces.given = pieces.rest()?.trim_end_matches('\u{fffd}').to_string();
        Ok(pieces)
    }

    /// The text that the next id adds: none if it ends inside a character, whose text comes with its last token. Takes the same
    /// time for each id.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        if self.skip_special_tokens && self.tokenizer.is_special(id) {
            return Ok(String::new());
        }
        self.ids.push(id);
        let text = self.new_text()?;
        if text.ends_with('\u{fffd}') {
            let waits = self.ids.len() - self.known < MOST_UNFINISHED;
            return if waits { Ok(String::new()) } else { self.give_up(&text) };
        }
        self.ids.drain(..self.known);
        self.known = self.ids.len();
        self.given.clear();
        Ok(text)
    }

    /// Of `text`, that of the new ids, what comes before the last of them, with which a character may begin.
    fn give_up(&mut self, text: &str) -> Result<String> {
        *self = Self::after(&self.tokenizer, &self.ids, self.skip_special_tokens)?;
        let rest = self.rest()?;
        Ok(text.strip_suffix(&rest).unwrap_or(text).to_string())
    }

    /// What the ids stand for whose text has not been given, as they end inside a character.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn rest(&self) -> Result<String> {
        if self.known == self.ids.len() { Ok(String::new()) } else { self.new_text() }
    }

    /// What a next id's text may depend on.
    pub fn context(&self) -> &[u32] {
        &self.ids
    }

    fn new_text(&self) -> Result<String> {
        let (known, new) = self.ids.split_at(self.known);
        let text = self.tokenizer.added(known, [new.to_vec()])?.concat();
        Ok(text.strip_prefix(&self.given).unwrap_or(&text).to_string())
    }
}

impl Tokenizer {
    /// The text that each of `ids` adds to that before it; joined, they are what [`Self::decode`] gives for all. A
    /// character of several tokens belongs to the last of them.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn pieces(&self, ids: &[u32]) -> Result<Vec<String>> {
        let (tokenizer, ids) = (self.clone(), ids.to_vec());
        // All at once: handing them over one by one takes longer than decoding them.
        self.run(move |_| tokenizer.pieces_here(&ids))?
    }

    /// The text that each of `ids`, in place of the others, would add to that of `context`.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn alternatives(&self, context: &[u32], ids: &[u32]) -> Result<Vec<String>> {
        self.added(context, ids.iter().map(|id| vec![*id]))
    }

    fn added(&self, before: &[u32], new: impl IntoIterator<Item = Vec<u32>>) -> Result<Vec<String>> {
        // All at once: handing them over takes longer than decoding a few tokens.
        let all: Vec<Vec<u32>> = new.into_iter().map(|ids| [before, &ids].concat()).collect();
        let before = before.to_vec();
        let decoded = self.run(move |inner| {
            let before = inner.decode(&before, false)?;
            all.iter()
                .map(|ids| Ok(after(&before, &inner.decode(ids, false)?)))
                .collect::<Result<_, tokenizers::Error>>()
        })?;
        decoded.map_err(|e| invalid!("cannot decode token ids: {e}"))
    }

    fn pieces_here(&self, ids: &[u32]) -> Result<Vec<String>> {
        let mut text = Pieces::new(self, false);
        let mut pieces = ids.iter().map(|&id| text.push(id)).collect::<Result<Vec<String>>>()?;
        if let Some(last) = pieces.last_mut() {
            last.push_str(&text.rest()?);
        }
        Ok(pieces)
    }
}

/// What of `all` comes after `before`; where that ends inside a character, only what they share is before.
fn after(before: &str, all: &str) -> String {
    let same = before.chars().zip(all.chars()).take_while(|(a, b)| a == b);
    let shared: usize = same.map(|(a, _)| a.len_utf8()).sum();
    all[shared..].to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn bytes_that_are_no_characters_take_linear_time() {
        let tokenizer = Tokenizer::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tiny/aligned")).unwrap();
        let crab = tokenizer.encode("🦀", false).unwrap();
        assert!(crab.len() > 1, "{crab:?}");
        let first = crab[0];
        let mut pieces = Pieces::new(&tokenizer, true);
        for _ in 0..200 {
            pieces.push(first).unwrap();
            assert!(pieces.ids.len() <= CONTEXT + MOST_UNFINISHED, "{} ids are decoded again", pieces.ids.len());
        }
        // A character that follows is whole.
        for before in 0..30 {
            let ids = [&vec![first; before][..], &crab, &tokenizer.encode(" hot", false).unwrap()].concat();
            let pieces = tokenizer.pieces(&ids).unwrap();
            assert_eq!(pieces.concat(), tokenizer.decode(&ids, false).unwrap());
        }
    }
}

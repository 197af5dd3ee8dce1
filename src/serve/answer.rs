//! The text of an answer while its tokens come: what of it is certain, and whether a text that ends it is there.

use crate::model::Score;
use crate::tokenizer::{Pieces, Tokenizer};
use anyhow::Result;
use std::collections::VecDeque;
use std::sync::Arc;

/// A token and how likely it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// What it adds to the text.
    pub text: String,
    /// Where it begins in the text of the choice, in characters.
    pub offset: usize,
    /// `None`: the first of a prompt, which nothing precedes.
    pub log_probability: Option<f32>,
    /// The likeliest in its place, if they were asked for, once [`Fragment::named`] has made texts of them.
    pub top: Vec<(String, f32)>,
    /// Whether it ended the answer, of whose text it is no part.
    pub ends: bool,
    unnamed: Option<Unnamed>,
}

/// The likeliest tokens in the place of one, by their ids.
#[derive(Clone, Debug, PartialEq)]
struct Unnamed {
    /// The one that stands there.
    id: u32,
    /// Those before it.
    context: Vec<u32>,
    likeliest: Vec<(u32, f32)>,
}

/// Text that follows what was given before, and the tokens that begin in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fragment {
    pub text: String,
    pub tokens: Vec<Told>,
}

impl Fragment {
    /// Adds what follows.
    pub fn append(&mut self, next: Self) {
        self.text.push_str(&next.text);
        self.tokens.extend(next.tokens);
    }

    /// Whether [`Self::named`] has nothing to do.
    pub fn is_named(&self) -> bool {
        self.tokens.iter().all(|token| token.unnamed.is_none())
    }

    /// With the texts of all alternatives. Decodes each of them: not for a thread for which others wait.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn named(mut self, tokenizer: &Tokenizer) -> Result<Self> {
        self.tokens.iter_mut().try_for_each(|token| token.name(tokenizer))?;
        Ok(self)
    }
}

impl Told {
    /// The next token of a text.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn next(pieces: &mut Pieces, id: u32, score: Option<Score>, offset: usize) -> Result<Self> {
        let log_probability = score.as_ref().map(|score| score.log_probability);
        let likeliest = score.map(|score| score.top).filter(|top| !top.is_empty());
        let unnamed = likeliest.map(|likeliest| Unnamed { id, context: pieces.context().to_vec(), likeliest });
        Ok(Self { text: pieces.push(id)?, offset, log_probability, top: vec![], ends: false, unnamed })
    }

    /// Tells the alternatives as what each would have added.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn name(&mut self, tokenizer: &Tokenizer) -> Result<()> {
        let Some(Unnamed { id, context, likeliest }) = self.unnamed.take() else { return Ok(()) };
        let (ids, values): (Vec<u32>, Vec<f32>) = likeliest.into_iter().unzip();
        let texts = tokenizer.alternatives(&context, &ids)?;
        let named = ids.iter().zip(texts).map(|(other, text)| if *other == id { self.text.clone() } else { text });
        self.top = named.zip(values).collect();
        Ok(())
    }
}

/// The answer so far.
pub struct Answer {
    tokenizer: Tokenizer,
    pieces: Pieces,
    /// Texts that end it.
    stops: Arc<[String]>,
    text: String,
    /// Bytes of the text that were given.
    given: usize,
    /// Tokens that were not given, and the byte of the text at which each begins.
    tokens: VecDeque<(usize, Told)>,
    /// Of the text and what stands before it.
    characters: usize,
}

impl Answer {
    /// `pieces`: what turns its ids into text; `before`: characters of the prompt, if that is part of the text.
    pub fn new(tokenizer: &Tokenizer, pieces: Pieces, before: usize, stops: Arc<[String]>) -> Self {
        let (tokenizer, tokens) = (tokenizer.clone(), VecDeque::new());
        Self { tokenizer, pieces, stops, text: String::new(), given: 0, tokens, characters: before }
    }

    /// Adds a token; returns what is certain of the text, and whether the answer has come to a text that ends it.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32, score: Option<Score>) -> Result<(Fragment, bool)> {
        let (start, offset) = (self.text.len(), self.characters);
        let told = score.is_some();
        let token = Told::next(&mut self.pieces, id, score, offset)?;
        self.add(&token.text);
        if told {
            self.tokens.push_back((start, token));
        }
        let fresh = &self.text[self.given..];
        if let Some(end) = self.stops.iter().filter_map(|stop| fresh.find(stop.as_str())).min() {
            self.text.truncate(self.given + end);
            let fragment = self.give(self.text.len(), false);
            self.tokens.clear();
            return Ok((fragment, true));
        }
        // What may become such a text waits.
        let held = self.stops.iter().map(|stop| overlap(fresh, stop)).max().unwrap_or(0);
        Ok((self.give(self.text.len() - held, true), false))
    }

    /// What is left once the answer has ended; `last`: the token that ended it, if it is to be told.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(&mut self, last: Option<(u32, Score)>) -> Result<Fragment> {
        let rest = self.pieces.rest()?;
        self.add(&rest);
        let mut fragment = self.give(self.text.len(), true);
        if let Some((id, score)) = last {
            let mut pieces = Pieces::new(&self.tokenizer, false);
            fragment.tokens.push(Told { ends: true, ..Told::next(&mut pieces, id, Some(score), self.characters)? });
        }
        Ok(fragment)
    }

    fn add(&mut self, text: &str) {
        self.text.push_str(text);
        self.characters += text.chars().count();
    }

    /// The text up to byte `end`, with the tokens that begin before it and, with `at_end`, at it.
    fn give(&mut self, end: usize, at_end: bool) -> Fragment {
        let text = self.text[self.given..end].to_string();
        self.given = end;
        let begins = |start: usize| start < end || at_end && start == end;
        let count = self.tokens.iter().take_while(|(start, _)| begins(*start)).count();
        Fragment { text, tokens: self.tokens.drain(..count).map(|(_, token)| token).collect() }
    }
}

/// Bytes of the longest end of `text` that `stop`, which is not in it, begins with.
fn overlap(text: &str, stop: &str) -> usize {
    let ends = stop.char_indices().map(|(end, _)| end).filter(|end| (1..=text.len()).contains(end));
    ends.rev().find(|end| text.ends_with(&stop[..*end])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::echo::{Echo, Echoed};
    use super::*;
    use std::path::Path;

    fn tokenizer() -> Tokenizer {
        Tokenizer::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tiny/aligned")).unwrap()
    }

    fn score(value: f32) -> Option<Score> {
        Some(Score { log_probability: value, top: vec![] })
    }

    /// Text, texts of the tokens told, and whether a stop text came.
    fn run(text: &str, stops: &[&str]) -> (Vec<String>, Vec<String>, bool) {
        let tokenizer = tokenizer();
        let stops = stops.iter().map(|stop| stop.to_string()).collect();
        let mut answer = Answer::new(&tokenizer, Pieces::new(&tokenizer, true), 0, stops);
        let (mut parts, mut tokens) = (vec![], vec![]);
        for id in tokenizer.encode(text, false).unwrap() {
            let (fragment, stopped) = answer.push(id, score(-1.0)).unwrap();
            parts.push(fragment.text);
            tokens.extend(fragment.tokens.into_iter().map(|token| token.text));
            if stopped {
                return (parts, tokens, true);
            }
        }
        let fragment = answer.finish(None).unwrap();
        parts.push(fragment.text);
        tokens.extend(fragment.tokens.into_iter().map(|token| token.text));
        (parts, tokens, false)
    }

    #[test]
    fn parts_add_up_to_the_text_up_to_what_ends_it() {
        let text = "The opposite of hot is cold, naïvely; 你好 🦀!";
        let (parts, tokens, stopped) = run(text, &[]);
        assert_eq!((parts.concat(), tokens.concat(), stopped), (text.to_string(), text.to_string(), false));
        for (stops, expected) in [
            (vec!["cold"], "The opposite of hot is "),
            (vec!["ï", "cold,"], "The opposite of hot is "),
            (vec!["is cold, x", "好"], "The opposite of hot is cold, naïvely; 你"),
            (vec!["The"], ""),
        ] {
            let (parts, tokens, stopped) = run(text, &stops);
            assert!(stopped && parts.concat() == expected, "{stops:?}: {parts:?}");
            assert!(tokens.concat().starts_with(expected), "{tokens:?}");
        }
        let (parts, tokens, stopped) = run(text, &["!?"]);
        assert_eq!((parts.concat(), tokens.concat(), stopped), (text.to_string(), text.to_string(), false));
    }

    #[test]
    fn what_may_become_a_stop_text_waits() {
        assert_eq!(overlap("is co", "cold"), 2);
        assert_eq!(overlap("is cc", "cold"), 1);
        assert_eq!(overlap("is cold", "old man"), 3);
        assert_eq!(overlap("naï", "ïx"), "ï".len());
        assert_eq!(overlap("is", "cold"), 0);
        assert_eq!(overlap("é", "é and more"), 2);
    }

    #[test]
    fn alternatives_become_texts_only_when_asked_for() {
        let tokenizer = tokenizer();
        let ids = ["The opposite of", " hot", " cold"].map(|text| tokenizer.encode(text, false).unwrap());
        let (hot, cold) = (ids[1][0], ids[2][0]);
        let pieces = Pieces::after(&tokenizer, &ids[0], true).unwrap();
        let mut answer = Answer::new(&tokenizer, pieces, 0, Arc::new([]));
        let top = vec![(cold, -0.5), (hot, -1.0)];
        let (fragment, _) = answer.push(hot, Some(Score { log_probability: -1.0, top })).unwrap();
        assert!(!fragment.is_named() && fragment.tokens[0].top.is_empty());
        let fragment = fragment.named(&tokenizer).unwrap();
        let texts: Vec<(String, f32)> = [(cold, -0.5), (hot, -1.0)]
            .map(|(id, value)| (tokenizer.alternatives(&ids[0], &[id]).unwrap().concat(), value))
            .into();
        assert!(fragment.is_named() && fragment.tokens[0].top == texts, "{fragment:?}");
        assert_eq!(fragment.tokens[0].top[1].0, fragment.text);
        assert!(answer.push(cold, score(-1.0)).unwrap().0.is_named(), "none were asked for");
    }

    #[test]
    fn an_echo_comes_first_and_offsets_count_its_characters() {
        let tokenizer = tokenizer();
        let (prompt, ids) = ("né", tokenizer.encode("né", false).unwrap());
        let scores = Some(vec![score(-2.0).unwrap(); ids.len() - 1]);
        let offsets = (0..ids.len()).collect();
        let echo = Arc::new(Echo { text: prompt.to_string(), ids: ids.clone(), offsets });
        let fragment = Echoed { echo, scores }.fragment(&tokenizer).unwrap();
        assert_eq!(fragment.text, prompt);
        assert_eq!(fragment.tokens[0].log_probability, None);
        assert!(fragment.tokens[1..].iter().all(|token| token.log_probability == Some(-2.0)));
        let pieces = Pieces::after(&tokenizer, &ids, true).unwrap();
        let mut answer = Answer::new(&tokenizer, pieces, 2, Arc::new([]));
        let id = tokenizer.encode(" hot", false).unwrap()[0];
        let (fragment, _) = answer.push(id, score(-0.5)).unwrap();
        assert_eq!(fragment.tokens[0].offset, 2);
        let eos = tokenizer.eos_id().unwrap();
        let fragment = answer.finish(Some((eos, score(-0.1).unwrap()))).unwrap();
        let last = fragment.tokens.last().unwrap();
        assert!(fragment.text.is_empty() && last.ends && last.text == tokenizer.eos_token().unwrap());
    }
}

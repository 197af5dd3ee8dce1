//! A prompt that is part of the text, and what is told of its tokens.

use super::answer::{Fragment, Told};
use crate::model::Score;
use crate::tokenizer::{Pieces, Tokenizer};
use crate::untrusted;
use anyhow::Result;
use std::sync::Arc;

/// A prompt that is part of the text.
#[derive(Debug)]
pub struct Echo {
    pub text: String,
    pub ids: Vec<u32>,
    /// Where each token begins in the text, in characters.
    pub offsets: Vec<usize>,
}

/// The same once the model has read it.
#[derive(Debug)]
pub struct Echoed {
    pub echo: Arc<Echo>,
    /// Of its tokens from the second on, if they are to be told.
    pub scores: Option<Vec<Score>>,
}

impl Echoed {
    /// What is told of it. Decodes every token and all its alternatives: not for a thread for which others wait.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn fragment(self, tokenizer: &Tokenizer) -> Result<Fragment> {
        let text = self.echo.text.clone();
        let Some(scores) = self.scores else { return Ok(Fragment { text, tokens: vec![] }) };
        let (tokenizer, echo) = (tokenizer.clone(), self.echo);
        // All at once: handing the tokens over one by one would take longer than decoding them.
        let tokens = untrusted::run(move || {
            let mut pieces = Pieces::new(&tokenizer, false);
            let scores = std::iter::once(None).chain(scores.into_iter().map(Some));
            let tokens = echo.ids.iter().zip(scores).zip(&echo.offsets);
            let tell = |((id, score), offset): ((&u32, _), &usize)| {
                let mut token = Told::next(&mut pieces, *id, score, *offset)?;
                token.name(&tokenizer)?;
                Ok(token)
            };
            tokens.map(tell).collect::<Result<Vec<Told>>>()
        });
        Ok(Fragment { text, tokens: tokens.map_err(|why| why.error("the tokenizer"))?? })
    }
}

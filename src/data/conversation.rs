//! A conversation as token ids, and which of them are trained on.
//!
//! The whole conversation is rendered and tokenized once, so the ids are those of transformers'
//! `apply_chat_template`. Where the template marks what the assistant says with `{% generation %}`, the tokens of these
//! blocks are the labels, as transformers' `return_assistant_tokens_mask` has them. Else what the assistant says in turn
//! i is found by rendering again:
//! 1. the conversation up to turn i with a generation prompt, and up to and including turn i: if both are prefixes of
//!    the whole, the response is the text between them;
//! 2. else (the template has no generation prompt, puts more into it than into a past turn, ends every rendering with
//!    some extra token, or rewrites earlier turns) the whole with two other contents in turn i: the response begins
//!    where the whole departs from the generation prompt, or else where these begin to differ, and ends where they agree
//!    again. A turn that calls tools begins where its generation prompt ends, or where an answer instead of the calls
//!    would; it ends with the first special token after the last call's name.
//!
//! Labels are the tokens that begin inside a response, through its end-of-turn token: the special tokens after the
//! content, as far as they are known to be this turn's (way 1), else the first, and the eos where that follows at once.
//! White space after that is not trained on. Nothing is appended to what
//! the template writes: without an end-of-turn token in it, none is trained on.
//!
//! Empty thoughts (`<think></think>`) that the template puts before an answer whose record has none are prompt: trained on,
//! they would teach a reasoning model to stop reasoning.

mod locate;
mod thoughts;
mod tokens;

use super::choice::Choice;
use super::template::Template;
use super::{Example, IGNORE};
use crate::tokenizer::{Encoded, Tokenizer};
use crate::{ensure_valid, invalid};
use anyhow::Result;
use locate::Rendered;
use serde_json::{Map, Value};
use std::ops::Range;
use tokens::Tokens;

/// Renders, tokenizes and labels `messages`. `variables` go to the template (tools, say); `read` makes tokens of what it
/// renders.
///
/// # Errors
/// The template refuses or fails; an assistant turn cannot be located in the rendering; a turn's choice that cannot be
/// followed.
pub fn encode(
    messages: &[Value],
    variables: &Map<String, Value>,
    (template, choice): (&Template, Choice),
    tokenizer: &Tokenizer,
    read: impl Fn(&str) -> Result<Encoded>,
) -> Result<Example> {
    let turns = choice.turns(messages)?;
    let (text, generated) = template.render_marked(messages, variables)?;
    let encoded = read(&text)?;
    let tokens = Tokens { encoded: &encoded, text: &text, tokenizer };
    let rendered = Rendered { messages, variables, template, text: &text };
    let mut labels = vec![IGNORE; encoded.ids.len()];
    for range in labelled(&rendered, &tokens, generated, choice, turns)? {
        for (label, &id) in labels.iter_mut().zip(&encoded.ids).take(range.end).skip(range.start) {
            *label = i64::from(id);
        }
    }
    Ok(Example { input_ids: encoded.ids, labels })
}

/// The tokens that are trained on. `turns`: those of the assistant, each with whether it is to be.
fn labelled(
    rendered: &Rendered,
    tokens: &Tokens,
    generated: Option<Vec<Range<usize>>>,
    choice: Choice,
    turns: Vec<(usize, bool)>,
) -> Result<Vec<Range<usize>>> {
    if choice.is_all() {
        let whole = 0..tokens.encoded.ids.len();
        return Ok(vec![whole]);
    }
    if let Some(blocks) = generated {
        let all = turns.iter().all(|(_, trained)| *trained);
        ensure_valid!(
            all || blocks.len() == turns.len(),
            "the chat template has {} generation blocks for {} turns of the assistant, so that single turns cannot be left \
             out; use another template (`data.template = \"FILE.jinja\"`)",
            blocks.len(),
            turns.len()
        );
        let chosen = blocks.into_iter().enumerate().filter(|(i, _)| all || turns.get(*i).is_some_and(|turn| turn.1));
        let own = |block: Range<usize>| {
            let start = if choice.on_reasoning { block.start } else { thoughts::after_any(rendered.text, &block) };
            tokens.range(&(start..block.end))
        };
        return Ok(chosen.map(|(_, block)| own(block)).collect());
    }
    let trained = turns.into_iter().filter(|(_, trained)| *trained);
    trained.map(|(turn, _)| response(rendered, tokens, turn, choice)).collect()
}

/// The tokens of what the assistant says in turn `turn`, with its end.
fn response(rendered: &Rendered, tokens: &Tokens, turn: usize, choice: Choice) -> Result<Range<usize>> {
    let message = rendered.messages.get(turn).ok_or_else(|| invalid!("there is no message {}", turn + 1))?;
    let own = |mut span: Range<usize>| -> Result<Range<usize>> {
        span.start = thoughts::after_empty(rendered.text, &span, message);
        if !choice.on_reasoning {
            if thoughts::has_own(message) && message["tool_calls"].is_null() {
                span.start = span.start.max(rendered.probed_content(turn)?.start);
            }
            span.start = thoughts::after_any(rendered.text, &span);
        }
        Ok(span)
    };
    if let Some(span) = rendered.between_renderings(turn) {
        return Ok(tokens.up_to_end_of_turn(tokens.range(&own(span)?)));
    }
    if message["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty()) {
        let calls = rendered.probed_calls(turn)?;
        return Ok(tokens.through_end_of_turn(tokens.range(&own(calls)?)));
    }
    let mut content = rendered.probed_content(turn)?;
    if let Some(start) = rendered.after_prompt(turn, thoughts::has_own(message)) {
        content.start = content.start.min(start);
    }
    Ok(tokens.with_end_of_turn(tokens.range(&own(content)?)))
}

//! A conversation as token ids, and which of them are the assistant's.
//!
//! The whole conversation is rendered and tokenized once, so the ids are those of transformers'
//! `apply_chat_template`. What the assistant says in turn i is found by rendering again:
//! 1. the conversation up to turn i with a generation prompt, and up to and including turn i: if both are prefixes of
//!    the whole, the response is the text between them;
//! 2. else (the template has no generation prompt, puts more into it than into a past turn, ends every rendering with
//!    some extra token, or rewrites earlier turns) the whole with two other contents in turn i: the response begins
//!    where these begin to differ and ends where they agree again, and includes the end-of-turn token after it. A turn
//!    that calls tools begins where its generation prompt ends, or where the whole with an answer instead of the calls
//!    begins to differ; it ends with the first special token after the last call's name.
//!
//! Labels are the tokens that begin inside a response, up to and including the end-of-turn token: the first special
//! token after the content. White space after that is not trained on. Nothing is appended to what the template writes:
//! without an end-of-turn token in it, none is trained on.

use super::template::Template;
use super::{Example, IGNORE};
use crate::tokenizer::{Encoded, Tokenizer};
use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde_json::{Map, Value};
use std::ops::Range;

/// Contents with no common prefix or suffix, to see where a turn's content goes.
const PROBES: [&str; 2] = ["Xylophones", "42 quarks!"];

/// Renders, tokenizes and labels `messages`. `variables` go to the template (tools, say); `read` makes tokens of what it
/// renders.
///
/// # Errors
/// The template refuses or fails; an assistant turn cannot be located in the rendering.
pub fn encode(
    messages: &[Value],
    variables: &Map<String, Value>,
    template: &Template,
    tokenizer: &Tokenizer,
    read: impl Fn(&str) -> Result<Encoded>,
) -> Result<Example> {
    let text = template.render(messages, false, variables)?;
    let encoded = read(&text)?;
    let mut labels = vec![IGNORE; encoded.ids.len()];
    for (turn, message) in messages.iter().enumerate() {
        if message.get("role").and_then(Value::as_str) != Some("assistant") {
            continue;
        }
        let tokens = match between_renderings(messages, turn, &text, variables, template) {
            Some(span) => up_to_end_of_turn(token_range(&encoded, &span), &encoded, &text, tokenizer),
            None if message["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty()) => {
                let calls = probed_calls(messages, turn, &text, variables, template)?;
                through_special(token_range(&encoded, &calls), &encoded, tokenizer)
            }
            None => {
                let content = probed_content(messages, turn, &text, variables, template)?;
                with_end_of_turn(token_range(&encoded, &content), &encoded, &text, tokenizer)
            }
        };
        for index in tokens {
            if let (Some(label), Some(&id)) = (labels.get_mut(index), encoded.ids.get(index)) {
                *label = i64::from(id);
            }
        }
    }
    Ok(Example { input_ids: encoded.ids, labels })
}

/// Way 1: the bytes of `text` that turn `turn` adds after its generation prompt.
fn between_renderings(
    messages: &[Value],
    turn: usize,
    text: &str,
    variables: &Map<String, Value>,
    template: &Template,
) -> Option<Range<usize>> {
    // Rendering part of a conversation may fail where the whole does not; then there is still way 2.
    let Ok(through) = template.render(&messages[..=turn], false, variables) else { return None };
    let prompt = generation_prompt(messages, turn, variables, template)?;
    let found = text.starts_with(&through) && through.starts_with(&prompt);
    found.then_some(prompt.len()..through.len())
}

/// Way 2 for a turn that calls tools: the bytes of `text` from the turn's beginning to its last call's name.
fn probed_calls(
    messages: &[Value],
    turn: usize,
    text: &str,
    variables: &Map<String, Value>,
    template: &Template,
) -> Result<Range<usize>> {
    let probe = |content: &str, name: Option<&str>| {
        let mut probed = messages.to_vec();
        if let Some(message) = probed.get_mut(turn).and_then(Value::as_object_mut) {
            message.insert("content".to_string(), Value::from(content));
            if name.is_none() {
                message.remove("tool_calls");
            }
            for call in message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
                let call = if call.get("function").is_some() { &mut call["function"] } else { call };
                if let Some(call) = call.as_object_mut() {
                    call.insert("name".to_string(), Value::from(name));
                }
            }
        }
        template.render(&probed, false, variables)
    };
    let [one, two] = PROBES;
    let (a, b) = (probe(one, Some(one))?, probe(two, Some(two))?);
    ensure_valid!(
        a != probe(one, Some(two))?,
        "the tool calls of message {} cannot be found in the rendered conversation: the chat template leaves them out; \
         use one that renders `tool_calls` (`data.template = \"FILE.jinja\"`)",
        turn + 1
    );
    let first_difference = |a: &str, b: &str| common_prefix(a, b).min(common_prefix(a, text));
    let prompt = generation_prompt(messages, turn, variables, template);
    let start = match (prompt, probe(one, None), probe(two, None)) {
        (Some(prompt), ..) if text.starts_with(&prompt) => prompt.len(),
        (_, Ok(a), Ok(b)) => first_difference(&a, &b),
        // The template refuses a tool's turn without a call before it.
        _ => first_difference(&a, &b),
    };
    let end = text.len().saturating_sub(common_suffix(&a, &b).min(common_suffix(&a, text)));
    Ok(start..end.max(start))
}

/// The rendering of what comes before turn `turn`, with a generation prompt if the template has one.
fn generation_prompt(
    messages: &[Value],
    turn: usize,
    variables: &Map<String, Value>,
    template: &Template,
) -> Option<String> {
    let Ok(prompt) = template.render(&messages[..turn], true, variables) else { return None };
    let plain = template.render(&messages[..turn], false, variables);
    // A template that ignores add_generation_prompt would leave the turn's header in the response.
    plain.is_ok_and(|plain| plain != prompt).then_some(prompt)
}

/// Way 2: the bytes of `text` that come from the content of turn `turn`.
fn probed_content(
    messages: &[Value],
    turn: usize,
    text: &str,
    variables: &Map<String, Value>,
    template: &Template,
) -> Result<Range<usize>> {
    let probe = |content: &str| {
        let mut probed = messages.to_vec();
        if let Some(message) = probed.get_mut(turn).and_then(Value::as_object_mut) {
            message.insert("content".to_string(), Value::from(content));
        }
        template.render(&probed, false, variables)
    };
    let (a, b) = (probe(PROBES[0])?, probe(PROBES[1])?);
    let lost = || {
        invalid!(
            "assistant turn {} (message {}) cannot be found in the rendered conversation: the chat template rewrites \
             or leaves out this turn; make one record per assistant turn, or use another template (`data.template = \
             \"FILE.jinja\"`)",
            messages[..=turn].iter().filter(|m| m["role"] == "assistant").count(),
            turn + 1
        )
    };
    let (start, tail) = (common_prefix(&a, &b), common_suffix(&a, &b));
    if start >= a.len() {
        return Err(lost());
    }
    let start = start.min(common_prefix(&a, text));
    let end = text.len().saturating_sub(tail.min(common_suffix(&a, text)));
    if start > end {
        return Err(lost());
    }
    // A blank before the content ("[/INST] answer") is part of the answer's first token in most vocabularies.
    let start = text.get(..start).map_or(start, |head| head.trim_end_matches(' ').len());
    Ok(start..end)
}

/// Length in bytes of the common prefix of two texts.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum()
}

/// Length in bytes of the common suffix of two texts.
fn common_suffix(a: &str, b: &str) -> usize {
    a.chars().rev().zip(b.chars().rev()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum()
}

/// The tokens that begin inside a byte span.
fn token_range(encoded: &Encoded, span: &Range<usize>) -> Range<usize> {
    let first = |byte: usize| encoded.offsets.iter().position(|(start, _)| *start >= byte).unwrap_or(encoded.ids.len());
    let begin = first(span.start);
    begin..first(span.end).max(begin)
}

fn is_blank(index: usize, encoded: &Encoded, text: &str) -> bool {
    let covered = encoded.offsets.get(index).and_then(|&(start, end)| text.get(start..end));
    covered.is_some_and(|covered| covered.trim().is_empty())
}

fn is_special(index: usize, encoded: &Encoded, tokenizer: &Tokenizer) -> bool {
    encoded.ids.get(index).is_some_and(|&id| tokenizer.is_special(id))
}

fn is_added(index: usize, encoded: &Encoded, tokenizer: &Tokenizer) -> bool {
    encoded.ids.get(index).is_some_and(|&id| tokenizer.is_added(id))
}

/// `range` without what follows the first special token after its content.
fn up_to_end_of_turn(range: Range<usize>, encoded: &Encoded, text: &str, tokenizer: &Tokenizer) -> Range<usize> {
    let content_end = range
        .clone()
        .rev()
        .find(|&index| !is_blank(index, encoded, text) && !is_special(index, encoded, tokenizer))
        .map_or(range.start, |last| last + 1);
    // Some tokenizers do not flag theirs as special (Gemma 1's, for one): then it is an added token at the very end.
    let end_of_turn = (content_end..range.end)
        .find(|&index| is_special(index, encoded, tokenizer))
        .or(content_end.checked_sub(1).filter(|&last| last >= range.start && is_added(last, encoded, tokenizer)));
    range.start..end_of_turn.map_or(range.end, |index| index + 1)
}

/// `range` extended through the first special token after it, if there is one.
fn through_special(range: Range<usize>, encoded: &Encoded, tokenizer: &Tokenizer) -> Range<usize> {
    let end = (range.end..encoded.ids.len()).find(|&index| is_special(index, encoded, tokenizer));
    range.start..end.map_or(range.end, |index| index + 1)
}

/// `range` of the content, extended by the end-of-turn token if one follows.
fn with_end_of_turn(range: Range<usize>, encoded: &Encoded, text: &str, tokenizer: &Tokenizer) -> Range<usize> {
    let next = (range.end..encoded.ids.len())
        .find(|&index| is_special(index, encoded, tokenizer) || !is_blank(index, encoded, text));
    let end_of_turn =
        next.filter(|&index| is_special(index, encoded, tokenizer) || is_added(index, encoded, tokenizer));
    range.start..end_of_turn.map_or(range.end, |index| index + 1)
}

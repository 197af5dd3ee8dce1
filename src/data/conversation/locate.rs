//! Where a turn of the assistant is in the rendered conversation.

use crate::data::template::Template;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::ops::Range;

/// Contents with no common prefix or suffix, to see where a turn's content goes.
const PROBES: [&str; 2] = ["Xylophones", "42 quarks!"];

/// A conversation and its rendering without a generation prompt.
pub struct Rendered<'a> {
    pub messages: &'a [Value],
    /// What the template gets besides the messages.
    pub variables: &'a Map<String, Value>,
    pub template: &'a Template,
    pub text: &'a str,
}

impl Rendered<'_> {
    /// Way 1: the bytes of the text that turn `turn` adds after its generation prompt.
    pub fn between_renderings(&self, turn: usize) -> Option<Range<usize>> {
        let through = match self.messages.get(..=turn)? {
            all if all.len() == self.messages.len() => Cow::Borrowed(self.text),
            // Rendering part of a conversation may fail where the whole does not; then there is still way 2.
            part => Cow::Owned(self.render(part, false).ok()?),
        };
        let prompt = self.generation_prompt(turn)?;
        let found = self.text.starts_with(&*through) && through.starts_with(&prompt.text);
        found.then_some(prompt.text.len()..through.len())
    }

    /// Way 2 for a turn that calls tools: the bytes of the text from the turn's beginning to its last call's name.
    ///
    /// # Errors
    /// The template leaves the calls out.
    pub fn probed_calls(&self, turn: usize) -> Result<Range<usize>> {
        let text = self.text;
        let named = |name: &str| self.render(&self.with_calls_named(turn, name), false);
        let (a, b) = (named(PROBES[0])?, named(PROBES[1])?);
        ensure_valid!(
            a != b,
            "the tool calls of message {} cannot be found in the rendered conversation: the chat template leaves them \
             out; use one that renders `tool_calls` (`data.template = \"FILE.jinja\"`)",
            turn + 1
        );
        let first_difference = |a: &str, b: &str| common_prefix(a, b).min(common_prefix(a, text));
        let answers = |end: usize| {
            let answer = |content: &str| self.render(&self.with_answer(turn, content)[..end], false).ok();
            answer(PROBES[0]).zip(answer(PROBES[1])).map(|(a, b)| first_difference(&a, &b))
        };
        let prompt = self.generation_prompt(turn).filter(|prompt| text.starts_with(&prompt.text));
        let start = prompt
            .map(|prompt| prompt.text.len())
            .or_else(|| answers(self.messages.len()))
            // Some templates refuse a tool's turn without a call before it.
            .or_else(|| answers(turn + 1))
            .unwrap_or_else(|| first_difference(&a, &b));
        let end = text.len().saturating_sub(common_suffix(&a, &b).min(common_suffix(&a, text)));
        Ok(start..end.max(start))
    }

    /// Way 2: the bytes of the text that come from the content of turn `turn`.
    ///
    /// # Errors
    /// The template rewrites or leaves out the content.
    pub fn probed_content(&self, turn: usize) -> Result<Range<usize>> {
        let probe = |content: &str| {
            let mut probed = self.messages.to_vec();
            if let Some(message) = probed.get_mut(turn).and_then(Value::as_object_mut) {
                put_content(message, content);
            }
            self.render(&probed, false)
        };
        let (text, a, b) = (self.text, probe(PROBES[0])?, probe(PROBES[1])?);
        let lost = || {
            invalid!(
                "assistant turn {} (message {}) cannot be found in the rendered conversation: the chat template \
                 rewrites or leaves out this turn; make one record per assistant turn, or use another template \
                 (`data.template = \"FILE.jinja\"`)",
                self.messages[..=turn].iter().filter(|m| m["role"] == "assistant").count(),
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

    /// Where what the model is to write in turn `turn` begins, if its generation prompt tells: after the prompt or, if the
    /// turn `reasons`, where it departs from the empty thoughts that some templates put into the prompt.
    pub fn after_prompt(&self, turn: usize, reasons: bool) -> Option<usize> {
        let prompt = self.generation_prompt(turn)?;
        let common = common_prefix(&prompt.text, self.text);
        (common == prompt.text.len() || reasons && common > prompt.plain).then_some(common)
    }

    /// The rendering of what comes before turn `turn`, with a generation prompt if the template has one.
    fn generation_prompt(&self, turn: usize) -> Option<Prompt> {
        let Ok(text) = self.render(&self.messages[..turn], true) else { return None };
        let plain = self.render(&self.messages[..turn], false).ok()?;
        // A template that ignores add_generation_prompt would leave the turn's header in the response.
        (plain != text).then_some(Prompt { text, plain: plain.len() })
    }

    /// The messages with other names in the calls of turn `turn`.
    fn with_calls_named(&self, turn: usize, name: &str) -> Vec<Value> {
        let mut messages = self.messages.to_vec();
        let calls = messages.get_mut(turn).and_then(|message| message.get_mut("tool_calls"));
        for call in calls.and_then(Value::as_array_mut).into_iter().flatten() {
            let call = if call.get("function").is_some() { &mut call["function"] } else { call };
            if let Some(call) = call.as_object_mut() {
                call.insert("name".to_string(), Value::from(name));
            }
        }
        messages
    }

    /// The messages with an answer instead of the calls of turn `turn`.
    fn with_answer(&self, turn: usize, content: &str) -> Vec<Value> {
        let mut messages = self.messages.to_vec();
        if let Some(message) = messages.get_mut(turn).and_then(Value::as_object_mut) {
            put_content(message, content);
            message.remove("tool_calls");
        }
        messages
    }

    fn render(&self, messages: &[Value], add_generation_prompt: bool) -> Result<String> {
        self.template.render(messages, add_generation_prompt, self.variables)
    }
}

/// What the model is given to answer.
struct Prompt {
    text: String,
    /// Bytes of the same without the generation prompt.
    plain: usize,
}

/// Gives a message other content, in the form that its own has: some templates read only text, others only parts.
fn put_content(message: &mut Map<String, Value>, text: &str) {
    let is_parts = message.get("content").is_some_and(Value::is_array);
    let content = if is_parts { json!([{"type": "text", "text": text}]) } else { Value::from(text) };
    message.insert("content".to_string(), content);
}

/// Length in bytes of the common prefix of two texts.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum()
}

/// Length in bytes of the common suffix of two texts.
fn common_suffix(a: &str, b: &str) -> usize {
    a.chars().rev().zip(b.chars().rev()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum()
}

//! What a conversation must be before it is rendered: roles that somebody reads, answers that say something.

use super::records::kind;
use super::sharegpt::role_of;
use crate::error::nearest;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde_json::Value;

/// Names under which a message may hold its reasoning; templates read the first, and `thinking`.
pub const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Roles that every chat template may be given.
const ROLES: [&str; 5] = ["system", "user", "assistant", "tool", "developer"];

/// Refuses a role that nobody reads: a template writes it down, and what an assistant of another name says gets no
/// labels. `named`: whether the template's text names a role, such as `ipython`.
///
/// # Errors
/// The first such message, with the nearest known role.
pub fn check_roles(messages: &[Value], named: impl Fn(&str) -> bool) -> Result<()> {
    for (index, message) in messages.iter().enumerate() {
        let Some(role) = message.get("role").and_then(Value::as_str) else { continue };
        let means = role_of(&role.to_lowercase());
        // A template may name `model` for what it calls the assistant itself; such turns would get no labels.
        if ROLES.contains(&role) || means != Some("assistant") && named(role) {
            continue;
        }
        let near = means.or_else(|| nearest(&role.to_lowercase(), ROLES));
        let hint = near.map_or(String::new(), |near| format!("; did you mean {near:?}?"));
        return Err(invalid!(
            "message {}: `role` is {role:?}, expected one of {}, or one that the chat template names{hint}",
            index + 1,
            ROLES.join(", ")
        ));
    }
    Ok(())
}

/// Refuses an assistant's message that says nothing and calls no tool.
///
/// # Errors
/// The first such message.
pub fn check_answers(messages: &[Value]) -> Result<()> {
    for (index, message) in messages.iter().enumerate() {
        let mut says = REASONING.iter().chain(&["content", "tool_calls"]).map(|name| &message[*name]);
        if message["role"] == "assistant" && says.all(is_empty) {
            return Err(invalid!("message {}: {}", index + 1, nothing("the assistant's `content`")));
        }
    }
    Ok(())
}

/// # Errors
/// The response in field `name` is empty.
pub fn check_answer(name: &str, text: &str) -> Result<()> {
    ensure_valid!(!text.trim().is_empty(), "{}", nothing(&format!("field `{name}`")));
    Ok(())
}

fn nothing(what: &str) -> String {
    format!(
        "{what} is empty, so only the token that ends it would be trained on; correct or remove the record, or set \
         data.allow_empty_labels = true to train on that token"
    )
}

/// No text, no parts with text or of another type, no calls.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Array(parts) => parts.iter().all(|part| part.get("text").is_some_and(is_empty)),
        _ => false,
    }
}

/// Puts the text of `content` that is given as parts into one string, unless they are to be `kept`.
///
/// # Errors
/// A part that is not text.
pub fn join_parts(messages: &mut [Value], kept: bool) -> Result<()> {
    for (index, message) in messages.iter_mut().enumerate() {
        let Some(Value::Array(parts)) = message.get("content") else { continue };
        let mut whole = String::new();
        for (part_index, part) in parts.iter().enumerate() {
            match (part.get("type").and_then(Value::as_str), part.get("text")) {
                (Some("text") | None, Some(Value::String(text))) => whole.push_str(text),
                (Some(other), _) if other != "text" => {
                    return Err(invalid!(
                        "message {}: part {} of `content` is of type {other:?}, expected \"text\": only text is \
                         read",
                        index + 1,
                        part_index + 1
                    ));
                }
                _ => {
                    return Err(invalid!(
                        "message {}: part {} of `content` is {}, expected {{\"type\": \"text\", \"text\": \"...\"}}",
                        index + 1,
                        part_index + 1,
                        kind(part)
                    ));
                }
            }
        }
        if !kept {
            message["content"] = Value::String(whole);
        }
    }
    Ok(())
}

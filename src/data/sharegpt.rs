//! ShareGPT conversations as messages: `from` and `value` to `role` and `content`.

use super::choice;
use super::fields::Fields;
use super::records::{kind, parse};
use crate::error::nearest;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde_json::{Map, Value, json};

/// Speakers as datasets name them, and their roles in a chat template.
const ROLES: [(&str, &str); 13] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("chatgpt", "assistant"),
    ("model", "assistant"),
    ("bot", "assistant"),
    ("system", "system"),
    ("tool", "tool"),
    ("tool_response", "tool"),
    ("function", "tool"),
    ("function_response", "tool"),
    ("observation", "tool"),
];
/// Turns in which the assistant calls a tool: `value` is the call as JSON.
const CALLS: [&str; 2] = ["function_call", "tool_call"];

/// The role of a speaker that datasets know by the name `from`.
pub fn role_of(from: &str) -> Option<&'static str> {
    ROLES.iter().find(|(name, _)| *name == from).map(|(_, role)| *role)
}

/// The messages of a record: `conversations`, after `system` if there is one.
///
/// # Errors
/// A field or turn that is missing or of the wrong type; an unknown speaker; a call that is not JSON.
pub fn messages(fields: &Fields) -> Result<Vec<Value>> {
    let mut messages = vec![];
    if let Some(system) = fields.optional_text("system")?.filter(|text| !text.is_empty()) {
        messages.push(json!({"role": "system", "content": system}));
    }
    let turns = fields.list("conversations")?;
    ensure_valid!(!turns.is_empty(), "field `conversations` is empty, expected at least one turn");
    for (index, turn) in turns.iter().enumerate() {
        messages.push(message(turn).map_err(|e| invalid!("turn {}: {e}", index + 1))?);
    }
    Ok(messages)
}

fn message(turn: &Value) -> Result<Value> {
    let fields =
        turn.as_object().ok_or_else(|| invalid!("expected an object with `from` and `value`, got {}", kind(turn)))?;
    let text = |name: &str| {
        fields.get(name).and_then(Value::as_str).ok_or_else(|| {
            let found = fields.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            let hint = if fields.contains_key("role") {
                "; a list of `role` and `content` is `data.format = \"chat\"`, with `data.columns` = { messages = \
                 \"conversations\" }"
            } else {
                ""
            };
            invalid!("`{name}` is missing or not a string; fields found: {found}{hint}")
        })
    };
    let (from, value) = (text("from")?, text("value")?);
    choice::check_keys(turn)?;
    if CALLS.contains(&from) {
        let call = json!({"role": "assistant", "content": "", "tool_calls": calls(value)?});
        return Ok(with_choice(call, fields));
    }
    let Some(role) = role_of(from) else {
        let known = || ROLES.iter().map(|(name, _)| *name).chain(CALLS);
        let hint = nearest(from, known()).map_or(String::new(), |near| format!("; did you mean {near:?}?"));
        let known = known().collect::<Vec<_>>().join(", ");
        return Err(invalid!("`from` is {from:?}, which nobody known goes by; expected one of {known}{hint}"));
    };
    Ok(with_choice(json!({"role": role, "content": value}), fields))
}

/// The message, with what its turn says about being trained on.
fn with_choice(mut message: Value, turn: &Map<String, Value>) -> Value {
    for key in choice::KEYS {
        if let Some(said) = turn.get(key) {
            message[key] = said.clone();
        }
    }
    message
}

/// One call, or a list of them: `name` and `arguments` each.
fn calls(value: &str) -> Result<Vec<Value>> {
    let bad = |why: &str| invalid!("`value` of a call should be JSON with `name` and `arguments`: {why}");
    let calls = match parse(value).map_err(|e| bad(&e.to_string()))? {
        Value::Array(calls) => calls,
        call => vec![call],
    };
    let call = |call: Value| match call.get("name") {
        Some(Value::String(_)) => Ok(json!({"type": "function", "function": call})),
        _ => Err(bad(&format!("`name` is missing in {call}"))),
    };
    calls.into_iter().map(call).collect()
}

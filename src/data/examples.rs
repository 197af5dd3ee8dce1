//! From one record to one sample: what each format's fields mean, which tokens are labels.
//!
//! - alpaca: one user turn, `instruction` alone or `instruction + "\n" + input` if `input` is not empty, and one
//!   assistant turn `output`, through the chat template, which also sees `instruction` and `input` separately.
//! - chat: `messages`, and `tools` if there are any, through the chat template; see conversation.rs.
//! - sharegpt: `conversations`, after `system` if there is one, as messages; `tools` as in chat; see sharegpt.rs.
//! - prompt_completion: `prompt + completion` tokenized as one text, with the tokenizer's own beginning of text; the
//!   completion's tokens and the eos token after them are labels.
//! - text: tokenized with the tokenizer's own beginning of text, then the eos token; every token is a label.
//! - tokenized: `input_ids` and `labels` as they are.

use super::beginning;
use super::choice::{self, Choice};
use super::control::ControlTokens;
use super::fields::Fields;
use super::records::{Place, Record, is_text, kind};
use super::source::options::Columns;
use super::template::Template;
use super::{Example, Format, IGNORE, conversation, sharegpt, turns};
use crate::tokenizer::{Encoded, Tokenizer};
use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde_json::{Map, Value, json};

/// Turns records of one format into samples. `template` is set for the formats that need one.
pub struct Encoder {
    pub format: Format,
    pub columns: Columns,
    /// Put before the first user message, or the prompt.
    pub prefix: String,
    /// The system message of every conversation, if not empty.
    pub system: String,
    pub tokenizer: Tokenizer,
    pub template: Option<Template>,
    /// What of a sample is trained on.
    pub choice: Choice,
    /// Whether a response may say nothing.
    pub allow_empty: bool,
    pub control: ControlTokens,
}

impl Encoder {
    /// The sample of one record, never truncated.
    ///
    /// # Errors
    /// A field that is missing or of the wrong type; a conversation that the template refuses; ids out of range.
    pub fn encode(&self, record: &Record) -> Result<Example> {
        let fields = &Fields::new(record, &self.columns);
        match self.format {
            Format::Alpaca => {
                let messages = alpaca_messages(fields)?;
                self.check_answer(fields, "output")?;
                self.conversation(fields.place(), messages, fields.pick(&ALPACA_VARIABLES)?)
            }
            Format::Chat => self.conversation(fields.place(), chat_messages(fields)?, tools(fields)?),
            Format::Sharegpt => self.conversation(fields.place(), sharegpt::messages(fields)?, tools(fields)?),
            Format::PromptCompletion => self.prompt_completion(fields),
            Format::Text => self.text(fields),
            Format::Tokenized => tokenized(fields, self.tokenizer.vocab_size()),
        }
    }

    /// A warning, with its fields, that concerns all samples.
    pub fn warning(&self) -> Option<(String, Value)> {
        beginning::missing(&self.tokenizer, self.template.as_ref()?)
    }

    fn conversation(
        &self,
        place: Place,
        mut messages: Vec<Value>,
        mut variables: Map<String, Value>,
    ) -> Result<Example> {
        let template = self.template.as_ref().ok_or_else(|| anyhow::anyhow!("no chat template was loaded"))?;
        if !self.system.is_empty() {
            put_system(&mut messages, &self.system);
        }
        template.prepare(&mut messages)?;
        if !self.allow_empty {
            turns::check_answers(&messages)?;
        }
        let hidden = {
            // What else an alpaca template may read is in the messages too.
            self.control.search(place, messages.iter().chain(variables.get("tools")))?
        };
        if hidden {
            messages.iter_mut().chain(variables.values_mut()).try_for_each(|value| self.control.hide(value))?;
        }
        if !self.prefix.is_empty() {
            put_before_user(&mut messages, &mut variables, &self.prefix)?;
        }
        conversation::encode(&messages, &variables, (template, self.choice), &self.tokenizer, |text| {
            ensure_valid!(
                hidden || text.contains(self.system.trim()),
                "the chat template leaves the source's `system` message out; use another one (`data.template`)"
            );
            if hidden { self.control.encode(text) } else { self.tokenizer.encode_with_offsets(text, false) }
        })
    }

    fn prompt_completion(&self, fields: &Fields) -> Result<Example> {
        let (prompt, completion) = (format!("{}{}", self.prefix, fields.text("prompt")?), fields.text("completion")?);
        self.check_answer(fields, "completion")?;
        let encoded = self.content(fields.place(), format!("{prompt}{completion}"))?;
        let tokens = encoded.offsets.iter().zip(&encoded.added);
        // The tokenizer's own beginning of text is not part of the completion, its own end of text is.
        let completion =
            tokens.clone().position(|((start, _), added)| !added && *start >= prompt.len()).unwrap_or_else(|| {
                tokens.clone().rposition(|(_, added)| !added).map_or(encoded.ids.len(), |last| last + 1)
            });
        let begin = if self.choice.is_all() { 0 } else { completion };
        let mut input_ids = encoded.ids;
        self.end_with_eos(&mut input_ids)?;
        let labels =
            input_ids.iter().enumerate().map(|(i, &id)| if i < begin { IGNORE } else { i64::from(id) }).collect();
        Ok(Example { input_ids, labels })
    }

    fn text(&self, fields: &Fields) -> Result<Example> {
        ensure_valid!(self.prefix.is_empty(), "plain text has no user message to put a prefix before");
        self.check_answer(fields, "text")?;
        let mut input_ids = self.content(fields.place(), fields.text("text")?.to_string())?.ids;
        self.end_with_eos(&mut input_ids)?;
        let labels = input_ids.iter().map(|&id| i64::from(id)).collect();
        Ok(Example { input_ids, labels })
    }

    /// Text that no template surrounds, with the tokenizer's own beginning and end.
    fn content(&self, place: Place, text: String) -> Result<Encoded> {
        let said = Value::String(text);
        let hidden = self.control.search(place, [&said])?;
        let text = said.as_str().unwrap_or_default();
        if hidden {
            return self.control.encode_content(text);
        }
        let mut encoded = self.tokenizer.encode_with_offsets(text, true)?;
        beginning::once(&mut encoded, &self.tokenizer);
        Ok(encoded)
    }

    /// Refuses an empty response, unless it is allowed.
    fn check_answer(&self, fields: &Fields, name: &str) -> Result<()> {
        if self.allow_empty { Ok(()) } else { turns::check_answer(name, fields.text(name)?) }
    }

    fn end_with_eos(&self, ids: &mut Vec<u32>) -> Result<()> {
        let eos = self.tokenizer.eos_id().ok_or_else(|| {
            invalid!(
                "the tokenizer has no eos token, so the model would never learn to stop; set `eos_token` in \
                 tokenizer_config.json"
            )
        })?;
        if ids.last() != Some(&eos) {
            ids.push(eos);
        }
        Ok(())
    }
}

/// Puts a system message in place of a conversation's own.
pub fn put_system(messages: &mut Vec<Value>, text: &str) {
    let message = json!({"role": "system", "content": text});
    match messages.first_mut().filter(|first| first["role"] == "system") {
        Some(first) => *first = message,
        None => messages.insert(0, message),
    }
}

/// Puts `prefix` before the first user message, and before the `instruction` that templates may read instead.
///
/// # Errors
/// No user message, or one whose content is not text.
fn put_before_user(messages: &mut [Value], variables: &mut Map<String, Value>, prefix: &str) -> Result<()> {
    if let Some(Value::String(instruction)) = variables.get_mut("instruction") {
        instruction.insert_str(0, prefix);
    }
    let user = messages.iter_mut().find(|message| message.get("role").and_then(Value::as_str) == Some("user"));
    let user = user.ok_or_else(|| invalid!("there is no user message to put the prefix before"))?;
    match user.get_mut("content") {
        Some(Value::String(content)) => content.insert_str(0, prefix),
        _ => return Err(invalid!("the first user message has no text to put the prefix before")),
    }
    Ok(())
}

/// What a template sees of an alpaca record besides the messages, if the record has it.
pub const ALPACA_VARIABLES: [&str; 2] = ["instruction", "input"];

/// The turns of an alpaca record.
pub fn alpaca_messages(fields: &Fields) -> Result<Vec<Value>> {
    let (user, output) = (user_content(fields)?, fields.text("output")?);
    Ok(vec![json!({"role": "user", "content": user}), json!({"role": "assistant", "content": output})])
}

/// The user turn of an alpaca record: `instruction`, with `input` on the next line if there is one.
pub fn user_content(fields: &Fields) -> Result<String> {
    let instruction = fields.text("instruction")?;
    Ok(match fields.optional_text("input")? {
        Some(input) if !input.is_empty() => format!("{instruction}\n{input}"),
        _ => instruction.to_string(),
    })
}

/// `messages`, each checked.
pub fn chat_messages(fields: &Fields) -> Result<Vec<Value>> {
    let messages = fields.list("messages")?.into_owned();
    ensure_valid!(!messages.is_empty(), "field `messages` is empty, expected at least one message");
    for (index, message) in messages.iter().enumerate() {
        check_message(message).map_err(|e| invalid!("message {}: {e}", index + 1))?;
    }
    Ok(messages)
}

/// `tools` as a template's variable, if the record has any.
pub fn tools(fields: &Fields) -> Result<Map<String, Value>> {
    let mut variables = Map::new();
    if !fields.pick(&["tools"])?.is_empty() {
        variables.insert("tools".to_string(), Value::from(fields.list("tools")?.into_owned()));
    }
    Ok(variables)
}

/// A message has a role, and content: text or a list of parts. Only a message with tool calls may lack it.
fn check_message(message: &Value) -> Result<()> {
    let fields = message
        .as_object()
        .ok_or_else(|| invalid!("expected an object with `role` and `content`, got {}", kind(message)))?;
    let found = || fields.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let role = fields.get("role").and_then(Value::as_str);
    ensure_valid!(role.is_some(), "`role` is missing or not a string; fields found: {}", found());
    choice::check_keys(message)?;
    let calls = fields.get("tool_calls").is_some_and(|calls| !calls.is_null());
    match fields.get("content") {
        Some(content) if is_text(content) || content.is_array() => Ok(()),
        None | Some(Value::Null) if calls => Ok(()),
        None => Err(invalid!("`content` is missing, expected a string; fields found: {}", found())),
        Some(other) => Err(invalid!("`content` is {}, expected a string", kind(other))),
    }
}

/// The sample of a `tokenized` record; `vocab_size` bounds its ids.
///
/// # Errors
/// Missing lists or lists of different lengths; ids or labels that are not below `vocab_size` (labels may be -100).
pub fn tokenized(fields: &Fields, vocab_size: usize) -> Result<Example> {
    let is_id = |id: u64| usize::try_from(id).is_ok_and(|id| id < vocab_size);
    let mut input_ids = vec![];
    for (index, value) in fields.list("input_ids")?.iter().enumerate() {
        let id = value.as_u64().filter(|&id| is_id(id)).and_then(|id| u32::try_from(id).ok());
        input_ids.push(id.ok_or_else(|| {
            invalid!("input_ids[{index}] is {value}, expected a token id below the vocabulary's {vocab_size}")
        })?);
    }
    let mut labels = vec![];
    for (index, value) in fields.list("labels")?.iter().enumerate() {
        let label = value.as_i64().filter(|&label| label == IGNORE || u64::try_from(label).is_ok_and(is_id));
        labels.push(label.ok_or_else(|| {
            invalid!("labels[{index}] is {value}, expected -100 or a token id below the vocabulary's {vocab_size}")
        })?);
    }
    ensure_valid!(
        input_ids.len() == labels.len(),
        "input_ids holds {} values and labels {}, expected equally many",
        input_ids.len(),
        labels.len()
    );
    ensure_valid!(!input_ids.is_empty(), "input_ids is empty");
    Ok(Example { input_ids, labels })
}

//! Requests as typed values: everything that a client may say, with the values it may have.

use super::fields::{Fields, expected};
use super::refusal::Refusal;
use crate::model::{check_temperature, check_top_p};
use serde_json::Value;

/// Answers to one prompt.
const MOST_CHOICES: usize = 8;
/// As in OpenAI's API, but for chats' 20 and completions' 5 alike.
const MOST_TOP: usize = 20;
const MOST_STOPS: usize = 16;
/// Of one text that ends answers.
const MOST_STOP_BYTES: usize = 1 << 10;
/// Above it, text is noise; OpenAI's bound.
const MOST_TEMPERATURE: f64 = 2.0;

/// What both kinds of request may say.
#[derive(Clone, Debug, PartialEq)]
pub struct Common {
    pub model: String,
    /// `None`: what the kind of request is given.
    pub max_tokens: Option<usize>,
    pub temperature: f64,
    pub top_p: f64,
    /// `None`: another one for each request.
    pub seed: Option<u64>,
    /// Answers to each prompt.
    pub choices: usize,
    /// Texts that end an answer; they are not part of it.
    pub stops: Vec<String>,
    pub stream: bool,
    /// Whether a stream ends with the counts of tokens.
    pub include_usage: bool,
}

/// `POST /v1/chat/completions`
#[derive(Clone, Debug, PartialEq)]
pub struct Chat {
    pub common: Common,
    pub messages: Vec<Value>,
    /// How many likely tokens to tell of each place, if tokens are to be told at all.
    pub top: Option<usize>,
}

/// `POST /v1/completions`
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    pub common: Common,
    pub prompts: Vec<Prompt>,
    /// Whether the prompt is part of the text.
    pub echo: bool,
    /// As in [`Chat`].
    pub top: Option<usize>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

impl Chat {
    /// # Errors
    /// What is wrong with the request.
    pub fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let mut fields = Fields::parse(body)?;
        let messages = match fields.take("messages") {
            Some(Value::Array(messages)) if !messages.is_empty() => messages,
            Some(Value::Array(_)) => return Err(Refusal::field("messages", "`messages` is an empty list")),
            Some(other) => return Err(expected("messages", "a list of one message or more", &other)),
            None => return Err(missing("messages")),
        };
        messages.iter().enumerate().try_for_each(|(index, message)| check_message(index, message))?;
        let told = fields.boolean("logprobs")?;
        let top = fields.count("top_logprobs", 0, MOST_TOP)?;
        if top.is_some_and(|top| top > 0) && !told {
            return Err(Refusal::field("top_logprobs", "`top_logprobs` needs `logprobs`: true"));
        }
        let long = fields.count("max_completion_tokens", 1, usize::MAX)?;
        let common = Common::take(&mut fields, 1)?;
        if long.is_some() && common.max_tokens.is_some() && long != common.max_tokens {
            return Err(Refusal::field("max_tokens", "`max_tokens` and `max_completion_tokens` differ; give one"));
        }
        for name in ["tools", "functions"] {
            fields.unserved(name, is_empty)?;
        }
        for name in ["tool_choice", "function_call"] {
            fields.unserved(name, |value| value == "none" || value == "auto")?;
        }
        fields.unserved("response_format", |value| value["type"] == "text")?;
        fields.unserved("modalities", |value| *value == serde_json::json!(["text"]))?;
        fields.unserved("reasoning_effort", |value| value == "none")?;
        fields.unserved("verbosity", |value| value == "medium")?;
        for name in ["audio", "web_search_options"] {
            fields.unserved(name, |_| false)?;
        }
        // Of what is asked for, it says only how.
        fields.take("parallel_tool_calls");
        fields.take("prediction");
        fields.finish()?;
        let common = Common { max_tokens: long.or(common.max_tokens), ..common };
        Ok(Self { common, messages, top: told.then_some(top.unwrap_or(0)) })
    }
}

impl Completion {
    /// # Errors
    /// What is wrong with the request.
    pub fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let mut fields = Fields::parse(body)?;
        let prompts = prompts(fields.take("prompt").ok_or_else(|| missing("prompt"))?)?;
        let echo = fields.boolean("echo")?;
        fields.drop_false("logprobs");
        let top = fields.count("logprobs", 0, MOST_TOP)?;
        let common = Common::take(&mut fields, 0)?;
        fields.unserved("suffix", |value| value == "")?;
        fields.unserved("best_of", |value| *value == common.choices)?;
        fields.finish()?;
        Ok(Self { common, prompts, echo, top })
    }
}

impl Common {
    fn take(fields: &mut Fields, least_tokens: usize) -> Result<Self, Refusal> {
        let model = fields.text("model")?.ok_or_else(|| missing("model"))?;
        let max_tokens = fields.count("max_tokens", least_tokens, usize::MAX)?;
        let temperature = fields.number("temperature")?.unwrap_or(1.0);
        let wrong = |name: &str, why: String| Refusal::field(name, format!("`{name}` {why}"));
        check_temperature(temperature).map_err(|why| wrong("temperature", why))?;
        if temperature > MOST_TEMPERATURE {
            return Err(wrong("temperature", format!("should be at most {MOST_TEMPERATURE}, got {temperature}")));
        }
        let top_p = fields.number("top_p")?.unwrap_or(1.0);
        check_top_p(top_p).map_err(|why| wrong("top_p", why))?;
        let seed = fields.seed("seed")?;
        let choices = fields.count("n", 1, MOST_CHOICES)?.unwrap_or(1);
        let stops = stops(fields.take("stop"))?;
        let stream = fields.boolean("stream")?;
        let include_usage = stream_options(fields, stream)?;
        for name in ["frequency_penalty", "presence_penalty"] {
            fields.unserved(name, |value| value.as_f64() == Some(0.0))?;
        }
        fields.unserved("logit_bias", is_empty)?;
        // About the account, or the cost.
        for name in ["user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"] {
            fields.take(name);
        }
        Ok(Self { model, max_tokens, temperature, top_p, seed, choices, stops, stream, include_usage })
    }
}

fn missing(name: &str) -> Refusal {
    Refusal { code: "missing_parameter", ..Refusal::field(name, format!("`{name}` is missing")) }
}

/// No items, or no keys.
fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(serde_json::Map::is_empty)
}

fn check_message(index: usize, message: &Value) -> Result<(), Refusal> {
    let is_content = |content: &Value| content.is_string() || content.is_array() || content.is_null();
    let is_message = message["role"].is_string() && is_content(&message["content"]);
    let what = "messages with a `role`, and `content` that is a string or a list of parts";
    if !is_message {
        return Err(Refusal::field("messages", format!("`messages` should hold {what}")));
    }
    // An assistant may have said nothing.
    let may_be_empty = message["role"] == "assistant" || message["tool_calls"].is_array();
    if message["content"].is_null() && !may_be_empty {
        let message = format!("`messages`: message {} has no `content`", index + 1);
        return Err(Refusal { code: "missing_parameter", ..Refusal::field("messages", message) });
    }
    Ok(())
}

/// One text, several, ids of one, or ids of several.
fn prompts(value: Value) -> Result<Vec<Prompt>, Refusal> {
    const WHAT: &str = "a string, a list of strings, a list of token ids, or a list of such lists";
    let wrong = |value: &Value| expected("prompt", WHAT, value);
    match &value {
        Value::String(text) => Ok(vec![Prompt::Text(text.clone())]),
        Value::Array(list) if list.first().is_some_and(Value::is_number) => {
            Ok(vec![Prompt::Ids(ids(&value).ok_or_else(|| wrong(&value))?)])
        }
        Value::Array(list) if !list.is_empty() => {
            let prompt = |item: &Value| match item {
                Value::String(text) => Some(Prompt::Text(text.clone())),
                item => ids(item).map(Prompt::Ids),
            };
            list.iter().map(prompt).collect::<Option<_>>().ok_or_else(|| wrong(&value))
        }
        _ => Err(wrong(&value)),
    }
}

fn ids(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

fn stops(value: Option<Value>) -> Result<Vec<String>, Refusal> {
    let texts = match &value {
        None => return Ok(vec![]),
        Some(Value::String(text)) => Some(vec![text.clone()]),
        Some(Value::Array(list)) => list.iter().map(|text| text.as_str().map(str::to_string)).collect(),
        Some(_) => None,
    };
    // An empty one asks for nothing.
    let texts = texts.map(|texts| texts.into_iter().filter(|text| !text.is_empty()).collect::<Vec<String>>());
    let fits =
        |texts: &Vec<String>| texts.len() <= MOST_STOPS && texts.iter().all(|text| text.len() <= MOST_STOP_BYTES);
    let what = format!("a string, or a list of up to {MOST_STOPS}, of at most {MOST_STOP_BYTES} bytes each");
    texts.filter(fits).ok_or_else(|| expected("stop", &what, &value.unwrap_or_default()))
}

fn stream_options(fields: &mut Fields, stream: bool) -> Result<bool, Refusal> {
    let Some(options) = fields.take("stream_options") else { return Ok(false) };
    if !stream {
        return Err(Refusal::field("stream_options", "`stream_options` needs `stream`: true"));
    }
    let known = |options: &serde_json::Map<String, Value>| {
        let known = |name: &str| ["include_usage", "include_obfuscation"].contains(&name);
        options.iter().all(|(name, value)| known(name) && (value.is_boolean() || value.is_null()))
    };
    if !options.as_object().is_some_and(known) {
        return Err(expected("stream_options", "{\"include_usage\": true or false}", &options));
    }
    Ok(options["include_usage"] == true)
}

#[cfg(test)]
mod tests;

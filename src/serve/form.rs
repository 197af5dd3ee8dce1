//! Answers in the form of OpenAI's API: whole, or as the chunks of a stream.

use super::answer::{Fragment, Told};
use crate::model::End;
use crate::version::VERSION;
use serde_json::{Map, Value, json};

/// Which endpoint answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Chat,
    Completion,
}

/// A choice as it has come so far.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    pub fragment: Fragment,
    pub end: Option<End>,
}

/// What all parts of one response have in common.
#[derive(Clone, Debug)]
pub struct Form {
    kind: Kind,
    id: String,
    /// Seconds since 1970.
    created: u64,
    model: String,
    /// How many likely tokens are told of each place, if tokens are told.
    top: Option<usize>,
    /// Of all prompts, each counted once.
    pub prompt_tokens: usize,
    /// Whether a stream ends with the counts of tokens.
    pub include_usage: bool,
}

impl Form {
    pub fn new(kind: Kind, model: &str, created: u64, top: Option<usize>) -> Self {
        let prefix = if kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
        let id = format!("{prefix}-{:032x}", rand::random::<u128>());
        Self { kind, id, created, model: model.to_string(), top, prompt_tokens: 0, include_usage: false }
    }

    /// A whole response; `chosen` counts the tokens of its answers.
    pub fn whole(&self, choices: &[Choice], chosen: usize) -> Value {
        let choice = |(index, choice): (usize, &Choice)| {
            let mut fields = Map::from_iter([("index".to_string(), json!(index))]);
            let text = &choice.fragment.text;
            match self.kind {
                Kind::Chat => {
                    fields.insert("message".into(), json!({"role": "assistant", "content": text, "refusal": null}))
                }
                Kind::Completion => fields.insert("text".into(), json!(text)),
            };
            self.finish(fields, &choice.fragment.tokens, choice.end)
        };
        let choices: Vec<Value> = choices.iter().enumerate().map(choice).collect();
        let mut whole = self.frame(choices, false);
        whole.insert("usage".into(), self.counts(chosen));
        Value::Object(whole)
    }

    /// What a stream begins each choice with, if anything.
    pub fn first(&self, index: usize) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        (self.kind == Kind::Chat).then(|| self.chunk(index, delta, &[], None))
    }

    /// A fragment of a choice.
    pub fn fragment(&self, index: usize, fragment: &Fragment) -> Value {
        let content = match self.kind {
            Kind::Chat => json!({"content": fragment.text}),
            Kind::Completion => json!(fragment.text),
        };
        self.chunk(index, content, &fragment.tokens, None)
    }

    /// The end of a choice.
    pub fn end(&self, index: usize, end: End) -> Value {
        let content = if self.kind == Kind::Chat { json!({}) } else { json!("") };
        self.chunk(index, content, &[], Some(end))
    }

    /// The counts that end a stream.
    pub fn usage(&self, chosen: usize) -> Value {
        let mut chunk = self.frame(vec![], true);
        chunk.insert("usage".into(), self.counts(chosen));
        Value::Object(chunk)
    }

    fn chunk(&self, index: usize, content: Value, tokens: &[Told], end: Option<End>) -> Value {
        let name = if self.kind == Kind::Chat { "delta" } else { "text" };
        let fields = Map::from_iter([("index".to_string(), json!(index)), (name.to_string(), content)]);
        let mut chunk = self.frame(vec![self.finish(fields, tokens, end)], true);
        if self.include_usage {
            chunk.insert("usage".into(), Value::Null);
        }
        Value::Object(chunk)
    }

    fn counts(&self, chosen: usize) -> Value {
        let prompt = self.prompt_tokens;
        json!({"prompt_tokens": prompt, "completion_tokens": chosen, "total_tokens": prompt + chosen})
    }

    fn frame(&self, choices: Vec<Value>, is_chunk: bool) -> Map<String, Value> {
        let object = match (self.kind, is_chunk) {
            (Kind::Chat, false) => "chat.completion",
            (Kind::Chat, true) => "chat.completion.chunk",
            (Kind::Completion, _) => "text_completion",
        };
        Map::from_iter([
            ("id".to_string(), json!(self.id)),
            ("object".to_string(), json!(object)),
            ("created".to_string(), json!(self.created)),
            ("model".to_string(), json!(self.model)),
            ("system_fingerprint".to_string(), json!(format!("asft {}", VERSION.as_str()))),
            ("choices".to_string(), json!(choices)),
        ])
    }

    /// A choice with what all of them have.
    fn finish(&self, mut fields: Map<String, Value>, tokens: &[Told], end: Option<End>) -> Value {
        let told = match self.top {
            None => Value::Null,
            // A chunk without tokens says nothing about any.
            Some(_) if tokens.is_empty() && fields.contains_key("delta") => Value::Null,
            Some(_) if self.kind == Kind::Chat => chat_logprobs(tokens),
            Some(top) => completion_logprobs(tokens, top),
        };
        fields.insert("logprobs".into(), told);
        let reason = end.map(|end| if end == End::Stop { "stop" } else { "length" });
        fields.insert("finish_reason".into(), json!(reason));
        Value::Object(fields)
    }
}

/// Tokens of the text, which the one that ended it is no part of.
fn chat_logprobs(tokens: &[Told]) -> Value {
    let one = |text: &str, value: f32| {
        Map::from_iter([
            ("token".to_string(), json!(text)),
            ("logprob".to_string(), number(value)),
            ("bytes".to_string(), json!(text.as_bytes())),
        ])
    };
    let token = |token: &Told| {
        let top: Vec<Map<String, Value>> = token.top.iter().map(|(text, value)| one(text, *value)).collect();
        let mut fields = one(&token.text, token.log_probability.unwrap_or_default());
        fields.insert("top_logprobs".into(), json!(top));
        fields
    };
    let content: Vec<Map<String, Value>> = tokens.iter().filter(|token| !token.ends).map(token).collect();
    json!({"content": content, "refusal": null})
}

/// Lists by token: the one that ended the text is the last of them.
fn completion_logprobs(tokens: &[Told], top: usize) -> Value {
    let likeliest = |token: &Told| {
        let own = token.log_probability?;
        let mut named = Map::new();
        // Of tokens with one text, the likeliest.
        for (text, value) in token.top.iter().map(|(text, value)| (text, *value)).chain([(&token.text, own)]) {
            named.entry(text.clone()).or_insert_with(|| number(value));
        }
        Some(named)
    };
    let tops = (top > 0).then(|| tokens.iter().map(likeliest).collect::<Vec<_>>());
    json!({
        "tokens": tokens.iter().map(|token| token.text.as_str()).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|token| token.log_probability.map(number)).collect::<Vec<_>>(),
        "top_logprobs": tops,
        "text_offset": tokens.iter().map(|token| token.offset).collect::<Vec<_>>(),
    })
}

/// The shortest decimal that is this f32.
fn number(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

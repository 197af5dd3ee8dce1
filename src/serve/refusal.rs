//! What is told to a client instead of an answer, in the form of OpenAI's errors.

use crate::console::log;
use crate::error::exit_code;
use serde_json::{Value, json};

/// A response that is an error.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// Of HTTP.
    pub status: u16,
    /// For programs.
    pub code: &'static str,
    /// The field of the request that is wrong, if one is.
    pub field: Option<String>,
    pub message: String,
}

impl Refusal {
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, field: None, message: message.into() }
    }

    /// A field with a value that it cannot have.
    pub fn field(name: &str, message: impl Into<String>) -> Self {
        Self { field: Some(name.to_string()), ..Self::new(400, "invalid_value", message) }
    }

    /// A prompt that cannot be read, for which the client is to blame if the error is a user's mistake.
    pub fn unreadable(field: &str, error: &anyhow::Error) -> Self {
        if exit_code(error) == 2 { Self::field(field, format!("{error:#}")) } else { Self::failure(error) }
    }

    /// A failure of the server, which its log tells more about than its client.
    pub fn failure(error: &anyhow::Error) -> Self {
        log::warn(&format!("a request failed: {error:#}"), json!({}));
        Self::new(500, "internal_error", "the server failed on this request; its log says why")
    }

    pub fn busy() -> Self {
        Self::new(503, "overloaded", "too many requests are waiting; try again later")
    }

    pub fn stopping() -> Self {
        Self::new(503, "stopping", "the server is stopping")
    }

    /// Whether the same request may be answered later.
    pub fn passes(&self) -> bool {
        self.status == 503
    }

    pub fn body(&self) -> Value {
        let kind = if self.status < 500 { "invalid_request_error" } else { "server_error" };
        json!({"error": {"message": self.message, "type": kind, "param": self.field, "code": self.code}})
    }
}

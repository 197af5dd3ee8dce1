//! What is told to a client instead of an answer, in the form of OpenAI's errors.

use crate::console::log;
use crate::error::{Unfinished, exit_code};
use serde_json::{Value, json};
use std::time::Duration;

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
        if error.chain().any(|cause| cause.is::<Unfinished>()) {
            log::warn(&format!("a request was given up: {error:#}"), json!({}));
            return Self::new(503, "overloaded", "the server gave this request up; its log says why");
        }
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

    /// `limit`: the time that a request may take.
    pub fn late(limit: Duration) -> Self {
        let seconds = limit.as_secs();
        Self::new(504, "timeout", format!("the request took longer than the {seconds} seconds that one may take"))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::untrusted::GivenUp;

    #[test]
    fn a_client_is_not_blamed_for_what_was_given_up() {
        let status = |why: GivenUp| Refusal::unreadable("prompt", &why.error("the tokenizer")).status;
        assert_eq!(
            (status(GivenUp::TooLong), status(GivenUp::TooMuchMemory), status(GivenUp::NoThread)),
            (503, 503, 503)
        );
        assert_eq!(status(GivenUp::Panicked), 400);
        assert_eq!(exit_code(&GivenUp::TooLong.error("the tokenizer")), 2);
    }
}

//! Why the parts of a record are trained on or not, in words.

use super::examples::{Encoder, alpaca_messages, chat_messages, put_system};
use super::fields::Fields;
use super::records::Record;
use super::turns::REASONING;
use super::{Format, sharegpt};
use anyhow::Result;
use serde_json::Value;

impl Encoder {
    /// A line for each message of a conversation, one for all of another record, and one for a cut at `max_length` tokens.
    ///
    /// # Errors
    /// As [`Encoder::encode`].
    pub fn explain(&self, record: &Record, max_length: usize) -> Result<Vec<String>> {
        let fields = &Fields::new(record, &self.columns);
        let mut lines = match self.format {
            Format::Alpaca => self.explain_turns(&alpaca_messages(fields)?)?,
            Format::Chat => self.explain_turns(&chat_messages(fields)?)?,
            Format::Sharegpt => self.explain_turns(&sharegpt::messages(fields)?)?,
            Format::PromptCompletion if self.choice.is_all() => vec![self.choice.all().to_string()],
            Format::PromptCompletion => {
                vec!["the prompt is no label; the completion is, and the token that ends it".to_string()]
            }
            Format::Text => vec!["text: every token is a label".to_string()],
            Format::Tokenized => vec!["tokenized: the record says what its labels are".to_string()],
        };
        let tokens = self.encode(record)?.input_ids.len();
        if tokens > max_length {
            lines.push(format!("cut to data.max_length = {max_length} of its {tokens} tokens"));
        }
        Ok(lines)
    }

    fn explain_turns(&self, messages: &[Value]) -> Result<Vec<String>> {
        let mut messages = messages.to_vec();
        if !self.system.is_empty() {
            put_system(&mut messages, &self.system);
        }
        let messages = &messages[..];
        if self.choice.is_all() {
            return Ok(vec![self.choice.all().to_string()]);
        }
        let mut lines = vec![];
        for (message, why) in messages.iter().zip(self.choice.reasons(messages)?) {
            let mut line = format!("message {} ({}): {why}", lines.len() + 1, message["role"].as_str().unwrap_or("?"));
            let reasons = REASONING.iter().any(|name| message[*name].as_str().is_some_and(|text| !text.is_empty()));
            if reasons && !self.choice.on_reasoning && message["role"] == "assistant" {
                line.push_str("; its reasoning is no label (data.train_on_reasoning = false)");
            }
            lines.push(line);
        }
        if self.template.as_ref().is_some_and(|template| template.has_generation()) {
            lines.push("of those, labels are what the chat template marks with {% generation %}".to_string());
        }
        Ok(lines)
    }
}

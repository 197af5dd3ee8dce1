//! Which turns of a conversation are trained on: by the settings, and by keys of the messages themselves.

use super::options::{DataOptions, TrainOn};
use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde_json::Value;

/// Keys by which a message says whether it is trained on: OpenAI's, Axolotl's two, and ms-swift's.
pub const KEYS: [&str; 4] = ["weight", "train", "training", "loss"];

/// Keys with which other tools choose less than a turn, or weigh it.
const REFUSED: [&str; 5] = ["train_detail", "training_detail", "loss_weight", "loss_scale", "loss_mask"];

/// What is trained on, as far as the settings tell.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    train_on: TrainOn,
    /// Whether the assistant's reasoning is.
    pub on_reasoning: bool,
}

impl Choice {
    pub fn new(options: &DataOptions) -> Self {
        Self { train_on: options.train_on, on_reasoning: options.train_on_reasoning }
    }

    /// Whether every token is trained on.
    pub fn is_all(self) -> bool {
        self.train_on == TrainOn::All
    }

    /// What is said of a sample of which every token is trained on.
    pub fn all(self) -> &'static str {
        "every token is a label (data.train_on = \"all\")"
    }

    /// Of each message, whether it is trained on and why, in words.
    ///
    /// # Errors
    /// As [`Choice::turns`].
    pub fn reasons(self, messages: &[Value]) -> Result<Vec<String>> {
        let turns = self.turns(messages)?;
        let last = turns.last().map_or(0, |(index, _)| index + 1);
        let reason = |(index, message): (usize, &Value)| {
            let trained = turns.iter().find(|(turn, _)| *turn == index).map(|(_, trained)| *trained);
            Ok(match (trained, said(message)?) {
                (None, _) => "no label: only what the assistant says is trained on".to_string(),
                (Some(true), _) => "labels, through the end of its turn".to_string(),
                (Some(false), Some((key, false))) => format!("no label: `{key}` is {}", message[key]),
                (Some(false), _) => {
                    format!("no label: data.train_on = \"last_response\", and that is message {last}")
                }
            })
        };
        messages.iter().enumerate().map(reason).collect()
    }

    /// The assistant's turns, each with whether it is trained on. A message's key can only exclude it.
    ///
    /// # Errors
    /// A key with a value that means nothing, or that cannot be followed.
    pub fn turns(self, messages: &[Value]) -> Result<Vec<(usize, bool)>> {
        let is_assistant = |message: &Value| message["role"] == "assistant";
        let last = messages.iter().rposition(is_assistant);
        let mut turns = vec![];
        for (index, message) in messages.iter().enumerate() {
            let said = said(message).map_err(|e| invalid!("message {}: {e}", index + 1))?;
            if let Some((key, wanted)) = said {
                let role = message["role"].as_str().unwrap_or_default();
                ensure_valid!(
                    !wanted || self.is_all() || role == "assistant",
                    "message {}: `{key}` asks to train on a message of the role {role:?}, but only the assistant's can be \
                     chosen; data.train_on = \"all\" trains on everything",
                    index + 1
                );
                ensure_valid!(
                    wanted || !self.is_all(),
                    "message {}: `{key}` excludes the message, but data.train_on = \"all\" trains on everything",
                    index + 1
                );
            }
            if is_assistant(message) {
                let chosen = self.train_on != TrainOn::LastResponse || last == Some(index);
                turns.push((index, chosen && said.is_none_or(|(_, wanted)| wanted)));
            }
        }
        Ok(turns)
    }
}

/// Whether a message says that it is trained on, and the key that says so.
fn said(message: &Value) -> Result<Option<(&'static str, bool)>> {
    let mut said: Option<(&str, bool)> = None;
    for key in KEYS {
        let wanted = match &message[key] {
            Value::Null => continue,
            Value::Bool(wanted) => *wanted,
            Value::Number(number) if number.as_f64() == Some(1.0) => true,
            Value::Number(number) if number.as_f64() == Some(0.0) => false,
            other => {
                return Err(invalid!("`{key}` is {other}, expected true, false, 1 or 0: a turn is trained on or not"));
            }
        };
        ensure_valid!(
            said.is_none_or(|(_, other)| other == wanted),
            "`{}` and `{key}` contradict each other",
            said.map_or(key, |(other, _)| other)
        );
        said = Some((key, wanted));
    }
    Ok(said)
}

/// Refuses keys of a message that mean something in other tools and cannot be followed here.
///
/// # Errors
/// The first such key.
pub fn check_keys(message: &Value) -> Result<()> {
    let found = REFUSED.into_iter().find(|key| !message[*key].is_null());
    match found {
        Some(key) => Err(invalid!(
            "`{key}` is not supported: a turn is trained on as a whole or not at all (`weight`: 1 or 0); remove the key"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn turns(train_on: TrainOn, messages: Value) -> Result<Vec<(usize, bool)>> {
        Choice { train_on, on_reasoning: true }.turns(messages.as_array().unwrap())
    }

    #[test]
    fn a_key_excludes_its_turn() {
        let messages = json!([
            {"role": "user", "content": "a", "weight": 0},
            {"role": "assistant", "content": "b", "weight": 0},
            {"role": "assistant", "content": "c", "train": false, "loss": null},
            {"role": "assistant", "content": "d", "weight": 1.0, "training": true},
            {"role": "assistant", "content": "e"},
        ]);
        let chosen = |train_on| turns(train_on, messages.clone()).unwrap();
        assert_eq!(chosen(TrainOn::Responses), [(1, false), (2, false), (3, true), (4, true)]);
        assert_eq!(chosen(TrainOn::LastResponse), [(1, false), (2, false), (3, false), (4, true)]);
    }

    #[test]
    fn reasons_are_given_for_every_message() {
        let messages = json!([
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "weight": 0},
            {"role": "assistant", "content": "c"},
            {"role": "assistant", "content": "d"},
        ]);
        let reasons = |train_on| {
            Choice { train_on, on_reasoning: true }.reasons(messages.as_array().unwrap()).unwrap().join("\n")
        };
        let (user, key, labels) = (
            "no label: only what the assistant says is trained on",
            "no label: `weight` is 0",
            "labels, through the end of its turn",
        );
        assert_eq!(reasons(TrainOn::Responses), [user, key, labels, labels].join("\n"));
        let earlier = "no label: data.train_on = \"last_response\", and that is message 4";
        assert_eq!(reasons(TrainOn::LastResponse), [user, key, earlier, labels].join("\n"));
    }

    #[test]
    fn what_cannot_be_followed_is_refused() {
        let error = |train_on, message: Value| {
            let error = turns(train_on, json!([message])).unwrap_err();
            assert_eq!(crate::error::exit_code(&error), 2);
            error.to_string()
        };
        let assistant = |key: &str, value: Value| json!({"role": "assistant", "content": "b", key: value});
        let responses = TrainOn::Responses;
        assert!(
            error(responses, assistant("weight", json!(0.5))).contains("message 1: `weight` is 0.5, expected true")
        );
        assert!(error(responses, assistant("train", json!("no"))).contains("`train` is \"no\""));
        let both = json!({"role": "assistant", "content": "b", "weight": 1, "train": false});
        assert!(error(responses, both).contains("`weight` and `train` contradict"));
        let user = json!({"role": "user", "content": "b", "train": true});
        assert!(error(responses, user).contains("message of the role \"user\""));
        assert!(error(TrainOn::All, assistant("weight", json!(0))).contains("trains on everything"));
        let text = check_keys(&json!({"train_detail": [[0, 3]]})).unwrap_err().to_string();
        assert!(text.contains("`train_detail` is not supported"), "{text}");
    }
}

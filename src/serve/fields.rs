//! The fields of a request, each read once: what is left in the end is not known here, and refused.

use super::refusal::Refusal;
use crate::data::kind;
use crate::error::nearest;
use serde_json::{Map, Value};

pub struct Fields {
    left: Map<String, Value>,
    /// Those that were asked for, for a hint at a misspelt one.
    known: Vec<&'static str>,
}

impl Fields {
    /// # Errors
    /// No JSON, or no object.
    pub fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|why| Refusal::new(400, "invalid_json", format!("the body is not JSON: {why}")))?;
        match value {
            Value::Object(left) => Ok(Self { left, known: vec![] }),
            other => Err(Refusal::new(400, "invalid_json", format!("expected a JSON object, got {}", kind(&other)))),
        }
    }

    /// A field that is there and not null.
    pub fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.left.shift_remove(name).filter(|value| !value.is_null())
    }

    pub fn boolean(&mut self, name: &'static str) -> Result<bool, Refusal> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(value)) => Ok(value),
            Some(other) => Err(expected(name, "true or false", &other)),
        }
    }

    pub fn text(&mut self, name: &'static str) -> Result<Option<String>, Refusal> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(expected(name, "a string", &other)),
        }
    }

    pub fn number(&mut self, name: &'static str) -> Result<Option<f64>, Refusal> {
        let Some(value) = self.take(name) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| expected(name, "a number", &value))
    }

    /// A whole number from `least` to `most`.
    pub fn count(&mut self, name: &'static str, least: usize, most: usize) -> Result<Option<usize>, Refusal> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        let count = count.filter(|count| (least..=most).contains(count));
        let range = || if most == usize::MAX { format!("{least} or more") } else { format!("{least} to {most}") };
        count.map(Some).ok_or_else(|| expected(name, &format!("a whole number, {}", range()), &value))
    }

    /// Leaves a field out that is `false` where a number may be.
    pub fn drop_false(&mut self, name: &str) {
        if self.left.get(name) == Some(&Value::Bool(false)) {
            self.left.shift_remove(name);
        }
    }

    /// A seed: any whole number of 64 bits.
    pub fn seed(&mut self, name: &'static str) -> Result<Option<u64>, Refusal> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let seed = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
        seed.map(Some).ok_or_else(|| expected(name, "a whole number of 64 bits", &value))
    }

    /// A field that is not served, unless its value asks for nothing.
    ///
    /// # Errors
    /// It asks for something.
    pub fn unserved(&mut self, name: &'static str, asks_nothing: impl Fn(&Value) -> bool) -> Result<(), Refusal> {
        match self.take(name) {
            Some(value) if !asks_nothing(&value) => Err(Refusal {
                code: "unsupported_parameter",
                ..Refusal::field(
                    name,
                    format!("`{name}` is not served here, and would change the answer; leave it out"),
                )
            }),
            _ => Ok(()),
        }
    }

    /// # Errors
    /// A field that nobody asked for.
    pub fn finish(self) -> Result<(), Refusal> {
        let Some(name) = self.left.keys().next() else { return Ok(()) };
        let hint = nearest(name, self.known).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
        let message = format!("`{name:.100}` is not known here, and would be ignored; leave it out{hint}");
        Err(Refusal { code: "unknown_parameter", ..Refusal::field(name, message) })
    }
}

pub fn expected(name: &str, what: &str, got: &Value) -> Refusal {
    let got = match got {
        Value::Array(list) if list.is_empty() => "an empty list".to_string(),
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => kind(got).to_string(),
        simple => format!("{:.100}", simple.to_string()),
    };
    Refusal::field(name, format!("`{name}` should be {what}, got {got}"))
}

//! Typed access to a `config.json`, with errors that name the file and the field.

use crate::invalid;
use anyhow::Result;
use serde_json::{Map, Value};

/// A JSON object and its name in errors.
pub struct Config<'a> {
    pub fields: &'a Map<String, Value>,
    pub origin: String,
}

impl<'a> Config<'a> {
    /// The value of a field that is present and not null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    /// Whether the field is present, even as null.
    pub fn is_written(&self, key: &str) -> bool {
        self.fields.contains_key(key)
    }

    pub fn wrong(&self, key: &str, expected: &str, got: &Value) -> anyhow::Error {
        invalid!("{}: `{key}` should be {expected}, got {got}", self.origin)
    }

    pub fn missing(&self, key: &str) -> anyhow::Error {
        invalid!("{}: `{key}` is missing", self.origin)
    }

    fn read<T>(&self, key: &str, expected: &str, convert: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        self.get(key).map(|value| convert(value).ok_or_else(|| self.wrong(key, expected, value))).transpose()
    }

    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        let convert = |value: &Value| value.as_u64().filter(|n| *n > 0 && *n < 1 << 32).map(|n| n as usize);
        self.read(key, "a positive integer", convert)
    }

    pub fn required_size(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| self.missing(key))
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a positive number", |value| value.as_f64().filter(|x| x.is_finite() && *x > 0.0))
    }

    pub fn required_number(&self, key: &str) -> Result<f64> {
        self.number(key)?.ok_or_else(|| self.missing(key))
    }

    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.read(key, "a list of numbers", |value| value.as_array()?.iter().map(Value::as_f64).collect())
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.read(key, "true or false", Value::as_bool)
    }

    pub fn string(&self, key: &str) -> Result<Option<&'a str>> {
        self.read(key, "a string", Value::as_str)
    }

    pub fn strings(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        self.read(key, "a list of strings", |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    /// The object in a field, as a config of its own.
    pub fn object(&self, key: &str) -> Result<Option<Config<'a>>> {
        let fields = self.read(key, "an object", Value::as_object)?;
        Ok(fields.map(|fields| Config { fields, origin: format!("{}: {key}", self.origin) }))
    }
}

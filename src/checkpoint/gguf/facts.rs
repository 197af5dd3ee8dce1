//! What a GGUF file's metadata say about its model.

use super::family::Family;
use super::header::Header;
use super::value::Value;
use crate::{ensure_valid, invalid};
use anyhow::Result;

/// A header's metadata under its architecture's name.
pub struct Facts<'a> {
    pub header: &'a Header,
    pub family: &'static Family,
}

impl<'a> Facts<'a> {
    /// # Errors
    /// A file that holds no model, a part of one, or one of another architecture.
    pub fn of(header: &'a Header) -> Result<Self> {
        let kind = header.text("general.type").unwrap_or("model");
        ensure_valid!(kind == "model", "it holds no model: general.type is `{kind}`");
        if let Some(Value::Whole(count)) = header.metadata.get("split.count") {
            ensure_valid!(
                *count <= 1,
                "it is one of {count} parts of a model; join them with llama-gguf-split --merge"
            );
        }
        let architecture = header.text("general.architecture");
        let architecture = architecture.ok_or_else(|| invalid!("the metadata have no general.architecture"))?;
        Ok(Self { header, family: Family::of_architecture(architecture)? })
    }

    /// The full name of a key such as `attention.head_count`.
    pub fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.family.architecture)
    }

    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.header.metadata.get(&self.key(key))
    }

    pub fn wrong(&self, key: &str, expected: &str) -> anyhow::Error {
        invalid!("{} is {:?}, expected {expected}", self.key(key), self.get(key))
    }

    /// A positive whole number; of an array with one for each layer, the one that all are.
    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        let size = match self.get(key) {
            None => return Ok(None),
            Some(Value::Whole(size)) => Some(*size),
            Some(Value::Wholes(sizes)) => sizes.first().copied().filter(|first| sizes.iter().all(|s| s == first)),
            Some(_) => None,
        };
        let size = size.filter(|size| *size > 0 && *size < 1 << 32).and_then(|size| usize::try_from(size).ok());
        size.map(Some).ok_or_else(|| self.wrong(key, "a positive whole number, the same for all layers"))
    }

    pub fn required_size(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| invalid!("the metadata have no {}", self.key(key)))
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Float(number)) if number.is_finite() => Ok(Some(*number)),
            Some(Value::Whole(number)) => Ok(Some(*number as f64)),
            Some(_) => Err(self.wrong(key, "a number")),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    pub fn heads(&self) -> Result<usize> {
        self.required_size("attention.head_count")
    }

    pub fn kv_heads(&self) -> Result<usize> {
        self.size("attention.head_count_kv")?.map_or_else(|| self.heads(), Ok)
    }

    pub fn head_dim(&self) -> Result<usize> {
        match self.size("attention.key_length")? {
            Some(size) => Ok(size),
            None => Ok((self.required_size("embedding_length")? / self.heads()?).max(1)),
        }
    }
}

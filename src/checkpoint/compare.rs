//! Whether tensors are equal, and hashes of what is stored.

use super::Checkpoint;
use crate::names::{EMBEDDING, HEAD};
use anyhow::Result;

impl Checkpoint {
    /// Whether two tensors hold the same bytes in the same type and shape.
    pub fn same(&self, one: &str, other: &str) -> Result<bool> {
        let (a, b) = (self.required(one)?, self.required(other)?);
        let alike = (a.stored, &a.shape) == (b.stored, &b.shape);
        Ok(alike && self.beginning(one, a)? == self.beginning(other, b)? && self.hash(one)? == self.hash(other)?)
    }

    /// Whether there is an output head that is another matrix than the embedding. As in transformers, it is then used even if
    /// `config.json` ties the two, as the configs of some multimodal models do by default.
    ///
    /// # Errors
    /// A failed read.
    pub fn has_own_head(&self) -> Result<bool> {
        let both = self.info(HEAD).is_some() && self.info(EMBEDDING).is_some();
        Ok(both && !self.same(HEAD, EMBEDDING)?)
    }

    fn hash(&self, name: &str) -> Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        self.for_each_chunk(name, |chunk| {
            hasher.update(chunk);
        })?;
        Ok(hasher.finalize())
    }

    /// A hash of the named tensors' names, shapes, types and bytes, independent of how they are sharded.
    pub fn content_hash<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<String> {
        let mut names: Vec<&str> = names.into_iter().collect();
        names.sort_unstable();
        let mut all = blake3::Hasher::new();
        for name in names {
            let info = self.required(name)?;
            all.update(format!("{name} {} {:?}\n", info.stored, info.shape).as_bytes());
            self.for_each_chunk(name, |chunk| {
                all.update(chunk);
            })?;
        }
        Ok(all.finalize().to_hex().to_string())
    }
}

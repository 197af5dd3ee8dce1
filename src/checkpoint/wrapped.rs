//! The text model of a multimodal checkpoint, shown under the names that it has in a class of its own.
//!
//! On disk it is `language_model.model.*` with `language_model.lm_head.*`, or `model.language_model.*` with `lm_head.*`. What
//! else there is (vision tower, projector) is hidden: only copies of the whole folder have it.

use super::Checkpoint;
use crate::invalid;
use crate::names::{Naming, text_name};
use anyhow::Result;

impl Checkpoint {
    /// With a multimodal model's text model alone, by its own names; other checkpoints as they are.
    ///
    /// # Errors
    /// Two tensors of one name.
    pub(super) fn unwrapped(mut self) -> Result<Self> {
        if !self.tensors.keys().any(|name| Naming::of(name) != Naming::Text) {
            return Ok(self);
        }
        for (name, info) in std::mem::take(&mut self.tensors) {
            let text = text_name(&name);
            let shown = text.clone().unwrap_or_else(|| name.clone());
            if let Some(companions) = self.four_bit.remove(&name) {
                self.four_bit.insert(shown.clone(), companions);
            }
            if self.tensors.insert(shown.clone(), info).is_some() {
                let place = self.shards.first().map_or(String::new(), |shard| shard.path.display().to_string());
                return Err(invalid!("{place}: two tensors are {shown} of the text model, one of them {name}"));
            }
            match text {
                None => drop(self.hidden.insert(name)),
                Some(text) if text == name => {}
                Some(text) => drop(self.on_disk.insert(text, name)),
            }
        }
        Ok(self)
    }

    /// Whether this is the text model of a multimodal checkpoint.
    pub fn is_wrapped(&self) -> bool {
        !self.on_disk.is_empty()
    }

    /// Whether a tensor belongs to no text model.
    pub(super) fn is_hidden(&self, name: &str) -> bool {
        self.hidden.contains(name)
    }

    /// What the tensor shown as `name` is called on disk.
    pub fn name_on_disk<'a>(&'a self, name: &'a str) -> &'a str {
        self.on_disk.get(name).map_or(name, String::as_str)
    }
}

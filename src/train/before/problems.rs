//! Collects everything that is wrong with a run, for one message.

use crate::error::joined;
use anyhow::Result;

/// What cannot be done if [`Problems`] stand in the way of a run.
pub const START: &str = "training cannot start";

/// Collected errors.
#[derive(Debug, Default)]
pub struct Problems(pub Vec<anyhow::Error>);

impl Problems {
    pub fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.0.push(error)).ok()
    }

    pub fn note_all<T>(&mut self, result: Result<T, Vec<anyhow::Error>>) -> Option<T> {
        result.map_err(|errors| self.0.extend(errors)).ok()
    }

    /// One error for all, the user's to put right if each of them is. `what`: what cannot be done.
    pub fn into_error(self, what: &str) -> anyhow::Error {
        joined(what, self.0)
    }
}

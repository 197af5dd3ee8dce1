//! Everything that is wrong with a run, for one message.

use crate::error::exit_code;
use crate::invalid;
use anyhow::{Result, anyhow};

/// Errors, gathered.
#[derive(Default)]
pub struct Problems(pub Vec<anyhow::Error>);

impl Problems {
    pub fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.0.push(error)).ok()
    }

    /// One error for all, the user's to put right if each of them is.
    pub fn into_error(mut self) -> anyhow::Error {
        if self.0.len() == 1 {
            return self.0.remove(0);
        }
        let lines: Vec<String> = self.0.iter().map(|error| format!("{error:#}")).collect();
        let text = format!("training cannot start, {} problems:\n  {}", lines.len(), lines.join("\n  "));
        if self.0.iter().all(|error| exit_code(error) == 2) { invalid!("{text}") } else { anyhow!(text) }
    }
}

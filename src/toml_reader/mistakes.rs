//! Collects what is wrong with values that a user wrote, for one message.

use crate::error::joined;
use crate::invalid;
use anyhow::Result;
use std::fmt::Debug;

/// Mistakes, one line each.
#[derive(Default)]
pub struct Mistakes(Vec<String>);

impl Mistakes {
    pub fn add(&mut self, mistake: impl Into<String>) {
        self.0.push(mistake.into());
    }

    pub fn unless(&mut self, ok: bool, mistake: impl Into<String>) {
        if !ok {
            self.add(mistake);
        }
    }

    /// Says of `key` that it must be `wanted`, unless it is.
    pub fn range(&mut self, ok: bool, key: &str, wanted: &str, value: impl Debug) {
        self.unless(ok, format!("`{key}` must be {wanted}, found {value:?}"));
    }

    pub fn at_least_one(&mut self, key: &str, value: usize) {
        self.range(value >= 1, key, "at least 1", value);
    }

    /// Adds the mistakes of a part, each prefixed with the part's name.
    pub fn add_all(&mut self, part: &str, others: Self) {
        self.extend(others.0.into_iter().map(|mistake| format!("{part}: {mistake}")));
    }

    pub fn lines(&self) -> &[String] {
        &self.0
    }

    /// Fails if there are mistakes; `what` is what cannot be done with them.
    ///
    /// # Errors
    /// One for all mistakes, if there are any.
    pub fn refuse(self, what: &str) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(joined(what, self.0.into_iter().map(|mistake| invalid!("{mistake}")).collect()))
    }
}

impl Extend<String> for Mistakes {
    fn extend<I: IntoIterator<Item = String>>(&mut self, mistakes: I) {
        self.0.extend(mistakes);
    }
}

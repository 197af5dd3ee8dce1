//! `rank_pattern` and `alpha_pattern`: a number for the modules whose path a regular expression matches. As in PEFT,
//! the expression must match the whole path, or its tail after a dot.

use crate::error::regex_problem;
use regex::Regex;

/// Patterns, each with its number, in the order given.
#[derive(Clone, Debug, Default)]
pub struct Patterns<T>(Vec<(String, Regex, T)>);

impl<T: Copy> Patterns<T> {
    /// # Errors
    /// An invalid regular expression, described in words.
    pub fn new<'a>(entries: impl IntoIterator<Item = (&'a str, T)>) -> Result<Self, String> {
        let compile = |(pattern, value): (&'a str, T)| match Regex::new(&format!(r"^(.*\.)?({pattern})$")) {
            Ok(regex) => Ok((pattern.to_string(), regex, value)),
            Err(error) => Err(format!("`{pattern}` is not a regular expression: {}", regex_problem(&error))),
        };
        entries.into_iter().map(compile).collect::<Result<_, _>>().map(Self)
    }

    /// The number of the first pattern that matches.
    pub fn of(&self, module: &str) -> Option<T> {
        self.matching(module).next().map(|(_, value)| value)
    }

    /// Every pattern that matches, with its number.
    pub fn matching<'a>(&'a self, module: &'a str) -> impl Iterator<Item = (&'a str, T)> {
        let matches = self.0.iter().filter(move |(_, regex, _)| regex.is_match(module));
        matches.map(|(pattern, _, value)| (pattern.as_str(), *value))
    }

    /// The patterns that match none of `modules`.
    pub fn idle<'a>(&'a self, modules: &'a [String]) -> impl Iterator<Item = &'a str> {
        let idle = self.0.iter().filter(|(_, regex, _)| !modules.iter().any(|module| regex.is_match(module)));
        idle.map(|(pattern, ..)| pattern.as_str())
    }
}

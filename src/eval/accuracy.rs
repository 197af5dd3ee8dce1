//! When an answer is right.

use super::options::{MARKER, Match};
use crate::error::regex_problem;
use crate::invalid;
use anyhow::Result;
use regex::Regex;
use std::sync::LazyLock;

/// A reference, ready to be compared with answers.
#[derive(Debug)]
pub enum Target {
    Exact(String),
    /// In lower case.
    Contains(String),
    Regex(Regex),
    Number {
        value: f64,
        marker: String,
    },
}

static NUMBER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"-?\d+\.?\d*").expect("the pattern is a constant"));

impl Target {
    /// # Errors
    /// A reference that should be a regular expression, or hold a number, and does not.
    pub fn new(reference: &str, matching: Match, marker: Option<&str>) -> Result<Self> {
        Ok(match matching {
            // A choice is compared with the reference as text.
            Match::Exact | Match::Choice => Self::Exact(reference.trim().to_string()),
            Match::Contains => Self::Contains(reference.trim().to_lowercase()),
            Match::Regex => Self::Regex(Regex::new(reference).map_err(|e| {
                invalid!("the reference {reference:?} is not a regular expression: {}", regex_problem(&e))
            })?),
            Match::Number => {
                let marker = marker.unwrap_or(MARKER).to_string();
                let value = number(reference, &marker)
                    .ok_or_else(|| invalid!("the reference holds no number: {reference:.80?}"))?;
                Self::Number { value, marker }
            }
        })
    }

    /// Whether `answer`, trimmed, is right.
    pub fn accepts(&self, answer: &str) -> bool {
        let answer = answer.trim();
        match self {
            Self::Exact(reference) => answer == reference,
            Self::Contains(reference) => answer.to_lowercase().contains(reference),
            Self::Regex(pattern) => pattern.is_match(answer),
            Self::Number { value, marker } => number(answer, marker) == Some(*value),
        }
    }
}

/// The first number between `marker` and its next occurrence, or else the last in the text; commas are left out. This
/// is how the AsFT reference reads GSM8K answers.
fn number(text: &str, marker: &str) -> Option<f64> {
    let text = text.replace(',', "");
    let all = |text: &str| -> Vec<f64> { NUMBER.find_iter(text).filter_map(|m| m.as_str().parse().ok()).collect() };
    let marked = text.split(marker).nth(1).and_then(|after| all(after).first().copied());
    marked.or_else(|| all(&text).last().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right(matching: Match, reference: &str, answer: &str) -> bool {
        Target::new(reference, matching, None).unwrap().accepts(answer)
    }

    #[test]
    fn words() {
        assert!(right(Match::Exact, "Paris", " Paris\n") && !right(Match::Exact, "Paris", "paris"));
        assert!(right(Match::Contains, "Paris", "It is PARIS.") && !right(Match::Contains, "Paris", "London"));
        assert!(right(Match::Regex, r"(?i)\bsports\b", "It's Sports!") && !right(Match::Regex, r"\bsci\b", "science"));
        assert!(Target::new("(", Match::Regex, None).is_err());
    }

    #[test]
    fn numbers() {
        let right = |reference, answer| right(Match::Number, reference, answer);
        assert!(right("2+3=5\nThe final answer is: 1,250", "so 7 The final answer is:  1250. Or 3"));
        assert!(right("-3.5", "first 2, last -3.50"), "the last number where there is no marker");
        assert!(right("12", "9 The final answer is: none, 12"), "the last where none follows the marker");
        assert!(!right("12", "no number") && !right("12", "The final answer is: 13 12"));
        assert!(Target::new("no number", Match::Number, None).is_err());
    }
}

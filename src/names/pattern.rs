//! Regular expressions for whole module paths, in Python's dialect: PEFT's `re.fullmatch`.

use crate::invalid;
use anyhow::Result;
use fancy_regex::Regex;

/// An expression that a whole module path must match. Look-around and back-references count, as in Python's `re`;
/// the work of backtracking is bounded.
#[derive(Clone, Debug)]
pub struct PathPattern {
    written: String,
    regex: Box<Regex>,
}

impl PathPattern {
    /// # Errors
    /// An invalid expression; `key` names the setting that holds it.
    pub fn new(key: &str, pattern: &str) -> Result<Self> {
        // Alone first: "a)|(b" must not become valid by what is put around it.
        let compiled = Regex::new(pattern).and_then(|_| Regex::new(&format!(r"\A(?:{pattern})\z")));
        let regex = compiled.map_err(|error| {
            let text = error.to_string();
            let problem = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            invalid!("{key} = \"{pattern}\" is not a valid regular expression: {problem}")
        })?;
        Ok(Self { written: pattern.to_string(), regex: Box::new(regex) })
    }

    /// # Errors
    /// An expression that backtracks for too long.
    pub fn matches(&self, module: &str) -> Result<bool> {
        let found = self.regex.is_match(module);
        found.map_err(|error| {
            invalid!("the regular expression \"{}\" cannot be tried on {module}: {error}", self.written)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_path_must_match_as_python_has_it() {
        let matches = |pattern: &str| PathPattern::new("t", pattern).unwrap().matches("a.0.q_proj").unwrap();
        for pattern in [r".*q_proj", r"a\.(?=\d)\d\.(?!k)\w+", r".*(?<=q)_proj", r"(?i)A.*", r"b|a\.0\.q_proj"] {
            assert!(matches(pattern), "{pattern}");
        }
        for pattern in ["q_proj", "a", "a|a.0", r".*(?!q)k_proj", ""] {
            assert!(!matches(pattern), "{pattern}");
        }
        for pattern in ["(((", "a)|(b", "*", "(?P<x"] {
            let error = PathPattern::new("t", pattern).unwrap_err();
            assert_eq!(crate::error::exit_code(&error), 2);
            assert_eq!(error.to_string().lines().count(), 1, "{error}");
        }
    }

    #[test]
    fn endless_backtracking_is_cut_short() {
        let pattern = PathPattern::new("t", r"(?:(a|a)*)*(?=b)b").unwrap();
        assert!(pattern.matches(&"a".repeat(200)).unwrap_err().to_string().contains("cannot be tried"));
    }
}

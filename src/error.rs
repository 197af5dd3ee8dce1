//! The two kinds of failure, distinguished by the exit code: a user's mistake (2) and everything else (1).
//!
//! Code returns `anyhow::Result`. Whatever a user can fix (a config key, a path, a file's content) is raised with
//! [`invalid!`]; context may be added around it freely: the mark is found anywhere in the chain.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// An error that the user can fix: bad config, missing or malformed file, mismatched checkpoint.
#[derive(Debug)]
pub struct Invalid(pub String);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}

/// Work on what a user gave that was given up, as it takes too long or too much: the user's mistake to a command, which does
/// nothing else, but not to a server, which may be too busy.
#[derive(Debug)]
pub struct Unfinished(pub String);

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unfinished {}

/// An error that every rank of a job knows of (see [`crate::ranks`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreed {
    pub text: String,
    pub exit_code: u8,
}

impl fmt::Display for Agreed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Agreed {}

/// Makes an [`anyhow::Error`] holding [`Invalid`] from a format string.
#[macro_export]
macro_rules! invalid {
    ($($arg:tt)*) => {
        anyhow::Error::new($crate::error::Invalid(format!($($arg)*)))
    };
}

/// Returns an [`Invalid`] error unless the condition holds.
#[macro_export]
macro_rules! ensure_valid {
    ($cond:expr, $($arg:tt)*) => {{
        let holds: bool = $cond;
        if !holds {
            return Err($crate::invalid!($($arg)*));
        }
    }};
}

/// Exit code for an error chain: 2 if the user can fix it, 1 otherwise.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(agreed) = error.downcast_ref::<Agreed>() {
        return agreed.exit_code;
    }
    // A clap-style usage mistake and a bad input share one code, so that scripts need to know only one.
    if error.chain().any(|cause| cause.is::<Invalid>() || cause.is::<Unfinished>()) { 2 } else { 1 }
}

/// One error for all of them, a user's mistake if each of them is. `what`: what cannot be done.
pub fn joined(what: &str, mut errors: Vec<anyhow::Error>) -> anyhow::Error {
    if errors.len() == 1 {
        return errors.remove(0);
    }
    let lines: Vec<String> = errors.iter().map(|error| format!("{error:#}")).collect();
    let text = format!("{what}, {} problems:\n  {}", lines.len(), lines.join("\n  "));
    if errors.iter().all(|error| exit_code(error) == 2) { invalid!("{text}") } else { anyhow::anyhow!(text) }
}

/// `values` joined for a message: at most `limit` of them, then a count of the rest.
pub fn listing<S: AsRef<str>>(values: &[S], limit: usize) -> String {
    let mut text = values.iter().take(limit).map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    if values.len() > limit {
        text.push_str(&format!(" and {} more", values.len() - limit));
    }
    text
}

/// What is wrong with a regular expression, on one line: the parser's own message draws the location on several.
pub fn regex_problem(error: &regex::Error) -> String {
    let text = error.to_string();
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_string()
}

/// The candidate nearest to `word`, if any is near enough to suggest a typing mistake.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(score, _)| *score > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// What may have been meant by `path`, which does not exist, for the end of a message: " (did you mean ...?)", or nothing.
pub fn path_hint(path: &Path) -> String {
    neighbour(path).map(|near| format!(" (did you mean {}?)", near.display())).unwrap_or_default()
}

/// The path on this machine that a typing mistake in `path`, which does not exist, may have meant. Digits are no
/// mistake: model-2 is not model-1 misspelt.
pub fn neighbour(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let parent = path.parent()?;
    let parent =
        if parent.as_os_str().is_empty() || parent.exists() { parent.to_path_buf() } else { neighbour(parent)? };
    if parent.join(name).exists() {
        return Some(parent.join(name));
    }
    let place = if parent.as_os_str().is_empty() { Path::new(".") } else { &parent };
    let most = if name.chars().count() < 5 { 1 } else { 2 };
    let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>();
    let far = |other: &String| strsim::damerau_levenshtein(&name.to_lowercase(), &other.to_lowercase());
    let entries = std::fs::read_dir(place).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let near = entries.filter(|other| !other.starts_with('.') && digits(other) == digits(name) && far(other) <= most);
    near.min_by_key(|other| (far(other), other.clone())).map(|near| parent.join(near))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn user_mistakes_are_found_under_context() {
        let error = Err::<(), _>(invalid!("no such key")).context("reading config").unwrap_err();
        assert_eq!(exit_code(&error), 2);
        assert_eq!(exit_code(&anyhow::anyhow!("disk full")), 1);
    }

    #[test]
    fn nearest_needs_likeness() {
        assert_eq!(nearest("learning_rat", ["learning_rate", "rank"]), Some("learning_rate"));
        assert_eq!(nearest("zzz", ["learning_rate", "rank"]), None);
    }

    #[test]
    fn neighbours_are_misspelt_paths() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["sandbox/aligned", "sandbox/unaligned", "models/Qwen2-7B"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let found = |path: &str| {
            neighbour(&dir.path().join(path)).map(|near| near.strip_prefix(dir.path()).unwrap().display().to_string())
        };
        assert_eq!(found("sandbox/alined").as_deref(), Some("sandbox/aligned"));
        assert_eq!(found("sandbx/aligned").as_deref(), Some("sandbox/aligned"));
        assert_eq!(found("sanbdox/unalinged").as_deref(), Some("sandbox/unaligned"));
        assert_eq!(found("Sandbox/Aligned").as_deref(), Some("sandbox/aligned"));
        for far in ["sandbox/judge", "models/Qwen3-7B", "models/Qwen2-7B-Instruct", "else/where"] {
            assert_eq!(found(far), None, "{far}");
        }
    }
}

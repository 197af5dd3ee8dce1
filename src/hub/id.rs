//! Names of things on the hub: `org/name`, `org/name@revision` and, for a file in it, `org/name@revision:path/to/file`.

use crate::ensure_valid;
use anyhow::Result;
use std::fmt;

const DEFAULT_REVISION: &str = "main";

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Model,
    Dataset,
}

impl Kind {
    pub fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }
}

/// A repository at a revision: a branch, a tag, `refs/...` or a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RepoId {
    pub org: String,
    pub name: String,
    pub revision: String,
}

impl RepoId {
    /// `None` if `text` does not look like `org/name[@revision]`.
    ///
    /// # Errors
    /// A revision that no repository can have.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        let (id, revision) = text.split_once('@').unwrap_or((text, DEFAULT_REVISION));
        let Some((org, name)) = id.split_once('/').filter(|(org, name)| is_name(org) && is_name(name)) else {
            return Ok(None);
        };
        // It becomes a file name below the cache's refs/.
        ensure_valid!(
            is_safe_path(revision) && !revision.contains(char::is_whitespace),
            "{text}: `{revision}` cannot be a revision; expected a branch, a tag or a commit after the @"
        );
        Ok(Some(Self { org: org.to_string(), name: name.to_string(), revision: revision.to_string() }))
    }

    /// `org/name`
    pub fn id(&self) -> String {
        format!("{}/{}", self.org, self.name)
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} at revision {}", self.org, self.name, self.revision)
    }
}

fn is_name(part: &str) -> bool {
    let mut characters = part.chars();
    characters.next().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_')
        && characters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// Whether a name given by a server (a commit, an etag) is safe as a file name.
pub(super) fn is_safe_name(name: &str) -> bool {
    is_name(name)
}

/// Whether a repository's path stays inside its folder: relative, without `.` and `..`.
pub(super) fn is_safe_path(path: &str) -> bool {
    !path.contains(char::is_control)
        && path.split(['/', '\\']).all(|part| !part.is_empty() && part != "." && part != "..")
        && std::path::Path::new(path).is_relative()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_revisions() {
        let parsed = |text| RepoId::parse(text).unwrap().map(|id| (id.id(), id.revision));
        assert_eq!(parsed("org/name"), Some(("org/name".into(), "main".into())));
        assert_eq!(parsed("org/na.me-1@refs/pr/3"), Some(("org/na.me-1".into(), "refs/pr/3".into())));
        for other in ["name", "./name", "../name", "/org/name", "a/b/c", "org/", "org/..", "C:\\org/name"] {
            assert_eq!(parsed(other), None, "{other}");
        }
        for bad in ["org/name@", "org/name@../../x", "org/name@/etc", "org/name@a b"] {
            assert!(RepoId::parse(bad).unwrap_err().to_string().contains("cannot be a revision"), "{bad}");
        }
    }

    #[test]
    fn paths_of_a_repository() {
        for good in ["a", "a/b.parquet", "..a", "data/train 1.csv"] {
            assert!(is_safe_path(good), "{good}");
        }
        for bad in ["", "..", "../a", "a/../../b", "/a", "a//b", "./a", "a/.", "a\\..\\b", "a\0b"] {
            assert!(!is_safe_path(bad), "{bad}");
        }
    }
}

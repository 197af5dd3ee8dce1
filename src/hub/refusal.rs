//! What a hub's refusal means: something that the user can fix, or a failure.

use super::site::Site;
use crate::invalid;
use anyhow::anyhow;
use reqwest::blocking::Response;

/// An HTTP response that is not a success.
pub(super) struct Refusal {
    pub status: u16,
    /// `X-Error-Code`: `RepoNotFound`, `RevisionNotFound`, `EntryNotFound` or `GatedRepo`, if the server says.
    pub code: Option<String>,
    pub message: Option<String>,
}

impl Refusal {
    pub fn of(response: &Response) -> Self {
        let header = |name| Some(response.headers().get(name)?.to_str().ok()?.to_string());
        Self { status: response.status().as_u16(), code: header("x-error-code"), message: header("x-error-message") }
    }

    /// Explains it in words. `page`: the repository's page on the hub.
    pub fn explain(&self, site: &Site, page: &str) -> anyhow::Error {
        let said = self.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
        let said = format!("HTTP {}{said}", self.status);
        match (self.status, self.code.as_deref()) {
            (401 | 404, Some("RepoNotFound")) => missing_repository(site),
            (404, Some("RevisionNotFound")) => missing_revision(),
            (404, _) => invalid!("the hub has no such file at this revision"),
            (401 | 403, _) if site.has_token() => invalid!(
                "the hub refuses access ({said}): the token in use may be wrong, or its account has no access yet; \
                 accept the conditions on {page} with it"
            ),
            (401 | 403, _) => invalid!(
                "the hub refuses access without a token ({said}): accept the conditions on {page}, then set HF_TOKEN \
                 to a token of that account"
            ),
            (429, _) => anyhow!("the hub asks to wait ({said}); run this again later"),
            _ => anyhow!("the hub could not answer ({said}); run this again later"),
        }
    }
}

pub(super) fn missing_revision() -> anyhow::Error {
    invalid!("the hub has the repository but not this revision")
}

pub(super) fn missing_repository(site: &Site) -> anyhow::Error {
    let hint = if site.has_token() {
        "private, and the account of the token in use has no access"
    } else {
        "private (set HF_TOKEN to a token of an account with access)"
    };
    invalid!("it is not on {}, or {hint}", site.endpoint())
}

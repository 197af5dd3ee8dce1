//! The hub as described by the environment: endpoint, token, cache, timeout. The variables are those of Python's
//! huggingface_hub.

use crate::{ensure_valid, invalid};
use anyhow::Result;
use reqwest::blocking::{Client, RequestBuilder, Response};
use reqwest::redirect::Policy;
use reqwest::{StatusCode, Url};
use std::path::PathBuf;
use std::time::Duration;

/// How long a server may stay silent, in seconds.
const PATIENCE: u64 = 30;
/// Waits before a request is tried again.
const WAITS: [Duration; 2] = [Duration::from_millis(300), Duration::from_millis(1200)];
const PUBLIC: &str = "https://huggingface.co";
const USER_AGENT: &str = concat!("asft/", env!("CARGO_PKG_VERSION"));

pub(super) const HOW_TO_GO_OFFLINE: &str = "if it is in the cache, HF_HUB_OFFLINE=1 uses that";

/// A hub to fetch from.
pub(super) struct Site {
    /// Without a slash at its end.
    endpoint: String,
    token: Option<String>,
    patience: Duration,
    /// Follows redirects; reqwest drops the token if they lead to another host.
    following: Client,
    direct: Client,
}

/// `HF_HUB_OFFLINE`
pub(super) fn is_offline() -> bool {
    variable("HF_HUB_OFFLINE")
        .is_some_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}

/// `HF_HUB_CACHE`, or `HUGGINGFACE_HUB_CACHE` as it was called once, else `hub` in [`home`].
pub(super) fn cache_dir() -> PathBuf {
    let named = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE"));
    named.map_or_else(|| home().join("hub"), PathBuf::from)
}

/// `HF_HOME`, else `huggingface` in the user's cache folder.
fn home() -> PathBuf {
    let cache = || match variable("XDG_CACHE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => std::env::home_dir().unwrap_or_default().join(".cache"),
    };
    variable("HF_HOME").map_or_else(|| cache().join("huggingface"), PathBuf::from)
}

/// `HF_ENDPOINT`, else the public hub.
fn endpoint() -> Result<String> {
    let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| PUBLIC.to_string());
    let is_usable = Url::parse(&endpoint).is_ok_and(|url| ["http", "https"].contains(&url.scheme()) && url.has_host());
    ensure_valid!(is_usable, "HF_ENDPOINT is `{endpoint}`; expected an address that begins with https:// or http://");
    Ok(endpoint.trim_end_matches('/').to_string())
}

impl Site {
    pub fn from_env() -> Result<Self> {
        let patience = match variable("HF_HUB_DOWNLOAD_TIMEOUT") {
            None => PATIENCE,
            Some(text) => text.parse().ok().filter(|seconds| *seconds > 0).ok_or_else(|| {
                invalid!("HF_HUB_DOWNLOAD_TIMEOUT is `{text}`; expected a whole number of seconds, at least 1")
            })?,
        };
        let patience = Duration::from_secs(patience);
        // Fails only where there is one already.
        let _there_is_one = rustls::crypto::ring::default_provider().install_default();
        let blocking = || Client::builder().user_agent(USER_AGENT).connect_timeout(patience).timeout(patience);
        let (following, direct) = (blocking().build()?, blocking().redirect(Policy::none()).build()?);
        Ok(Self { endpoint: endpoint()?, token: token(), patience, following, direct })
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// In seconds.
    pub fn patience(&self) -> u64 {
        self.patience.as_secs()
    }

    /// Sends a HEAD request for a file, without following redirects.
    pub fn head(&self, url: &str) -> Result<Response> {
        self.send(|| self.direct.head(url))
    }

    /// Requests a file from byte `start` on, following redirects.
    pub fn get(&self, url: &str, start: u64) -> Result<Response> {
        self.send(|| match start {
            0 => self.following.get(url),
            start => self.following.get(url).header("range", format!("bytes={start}-")),
        })
    }

    /// Sends a request, again if that may help.
    fn send(&self, request: impl Fn() -> RequestBuilder) -> Result<Response> {
        let attempt = || {
            let request = request().header("accept-encoding", "identity");
            match &self.token {
                Some(token) => request.bearer_auth(token).send(),
                None => request.send(),
            }
        };
        for wait in WAITS {
            match attempt() {
                Ok(response) if is_transient(response.status()) => {}
                Ok(response) => return Ok(response),
                Err(error) if error.is_timeout() || error.is_redirect() || error.is_builder() => {
                    return Err(self.silent(error));
                }
                Err(_) => {}
            }
            std::thread::sleep(wait);
        }
        attempt().map_err(|error| self.silent(error))
    }

    /// The error if there is no usable response at all.
    pub fn silent(&self, error: reqwest::Error) -> anyhow::Error {
        let host = error.url().map_or_else(|| self.endpoint.clone(), |url| url.origin().ascii_serialization());
        let what = if error.is_timeout() {
            format!("{host}: no answer for {} s (HF_HUB_DOWNLOAD_TIMEOUT); run this again", self.patience.as_secs())
        } else {
            format!("{host} could not be reached ({HOW_TO_GO_OFFLINE})")
        };
        // URLs of storage hosts contain signatures.
        anyhow::Error::new(error.without_url()).context(what)
    }
}

fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|value| value.trim().to_string()).filter(|value| !value.is_empty())
}

/// `HF_TOKEN`, else the file that `HF_TOKEN_PATH` names, else what `hf auth login` left in `HF_HOME`.
fn token() -> Option<String> {
    if variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some() {
        return None;
    }
    let stored = || {
        let path = variable("HF_TOKEN_PATH").map_or_else(|| home().join("token"), PathBuf::from);
        std::fs::read_to_string(path).ok().map(|text| text.trim().to_string()).filter(|token| !token.is_empty())
    };
    variable("HF_TOKEN").or_else(stored)
}

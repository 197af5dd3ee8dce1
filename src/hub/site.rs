//! The hub as described by the environment: endpoint, token, cache, timeout. The variables are those of Python's
//! huggingface_hub.

use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use hf_hub::{HFClient, HFClientSync};
use reqwest::StatusCode;
use reqwest::blocking::{Client, RequestBuilder, Response};
use reqwest::redirect::Policy;
use std::path::PathBuf;
use std::time::Duration;

/// How long a server may stay silent, in seconds.
const PATIENCE: u64 = 30;
/// Waits before a request is tried again.
const WAITS: [Duration; 2] = [Duration::from_millis(300), Duration::from_millis(1200)];
const USER_AGENT: &str = concat!("asft/", env!("CARGO_PKG_VERSION"));

pub(super) const HOW_TO_GO_OFFLINE: &str = "if it is in the cache, HF_HUB_OFFLINE=1 uses that";

/// A hub to fetch from.
pub(super) struct Site {
    /// Answers questions about repositories.
    pub hub: HFClientSync,
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

/// `HF_HUB_CACHE`, else `hub` in `HF_HOME`, else the user's cache folder.
pub(super) fn cache_dir() -> PathBuf {
    hf_hub::resolve_cache_dir()
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
        let token = token();
        // The client's own has no timeouts.
        let http = reqwest::Client::builder().user_agent(USER_AGENT).connect_timeout(patience).read_timeout(patience);
        let mut builder = HFClient::builder().client(http.build()?).retry_max_attempts(WAITS.len());
        if let Some(token) = &token {
            builder = builder.token(token);
        }
        let client = builder.build().map_err(|e| invalid!("HF_ENDPOINT is not usable: {e}"))?;
        let endpoint = client.endpoint().to_string();
        ensure_valid!(
            endpoint.starts_with("http://") || endpoint.starts_with("https://"),
            "HF_ENDPOINT is `{endpoint}`; expected an address that begins with https:// or http://"
        );
        let blocking = || Client::builder().user_agent(USER_AGENT).connect_timeout(patience).timeout(patience);
        let (following, direct) = (blocking().build()?, blocking().redirect(Policy::none()).build()?);
        let hub = HFClientSync::from_inner(client).context("starting the hub client")?;
        Ok(Self { hub, endpoint, token, patience, following, direct })
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
        let path = variable("HF_TOKEN_PATH").map_or_else(|| hf_hub::hf_home().join("token"), PathBuf::from);
        std::fs::read_to_string(path).ok().map(|text| text.trim().to_string()).filter(|token| !token.is_empty())
    };
    variable("HF_TOKEN").or_else(stored)
}

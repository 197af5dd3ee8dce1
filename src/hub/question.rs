//! Questions about a repository, by the hub's HTTP interface.

use super::id::Kind;
use super::site::Site;
use anyhow::{Context, Result, anyhow, ensure};
use reqwest::Url;
use reqwest::blocking::Response;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::io::Read;

/// Most bytes of an answer that are read. A page of a listing has about a thousand entries.
const LIMIT: u64 = 64 << 20;
/// Most pages of a listing: more files than any repository may have.
const MAX_PAGES: usize = 1000;

/// What the hub says of a repository.
#[derive(Deserialize)]
pub(super) struct Information {
    /// The commit.
    pub sha: String,
}

/// One line of a listing.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Entry {
    File { path: String, size: u64 },
    Directory,
}

/// The address of what the hub knows about a repository.
pub(super) fn address(site: &Site, kind: Kind, (org, name): (&str, &str), rest: &[&str]) -> Result<Url> {
    let mut url = Url::parse(site.endpoint())?;
    url.path_segments_mut()
        .map_err(|()| anyhow!("HF_ENDPOINT cannot be extended"))?
        .pop_if_empty()
        .extend(["api", kind.plural(), org, name])
        .extend(rest);
    Ok(url)
}

/// What an answer holds.
pub(super) fn answer<T: DeserializeOwned>(site: &Site, response: Response) -> Result<T> {
    let mut text = vec![];
    let read = response.take(LIMIT).read_to_end(&mut text);
    read.with_context(|| format!("the answer of {} broke off", site.endpoint()))?;
    serde_json::from_slice(&text).context("the hub's answer is not understood")
}

/// All of a listing whose first page is at `url`. `explain` says what a refusal means.
pub(super) fn entries(site: &Site, url: Url, explain: impl Fn(&Response) -> anyhow::Error) -> Result<Vec<Entry>> {
    let (mut entries, mut next) = (vec![], Some(url));
    for _ in 0..MAX_PAGES {
        let Some(url) = next else { return Ok(entries) };
        let response = site.get(url.as_str(), 0)?;
        if !response.status().is_success() {
            return Err(explain(&response));
        }
        next = following(&response);
        let leaves = next.as_ref().filter(|next| next.origin() != url.origin());
        ensure!(leaves.is_none(), "the hub continues its listing on another host");
        entries.extend(answer::<Vec<Entry>>(site, response)?);
    }
    Err(anyhow!("the hub's listing does not end"))
}

/// The address of the next page: `<https://…>; rel="next"` in the header `Link`.
fn following(response: &Response) -> Option<Url> {
    let links = response.headers().get("link")?.to_str().ok()?;
    let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    let (_, address) = next.split_once('<')?;
    response.url().join(address.split_once('>')?.0).ok()
}

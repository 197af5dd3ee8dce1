//! Fetches one file of a repository into the cache, completely or not at all.
//!
//! hf-hub's own downloads (1.0) start over after a break, keep whatever a server sends (an error page, a short body) as the
//! file's content and take names from the server unchecked. So files are fetched here: HEAD says what a file is, GET (from
//! where an earlier run stopped) brings it, its length and, if the hub gives it, its SHA-256 are checked, and only then does it
//! get its name. Files in Xet storage come over the same plain HTTP.

use super::cache::RepoCache;
use super::id::is_safe_name;
use super::partial::Partial;
use super::refusal::Refusal;
use super::site::Site;
use anyhow::{Context, Result, anyhow, ensure};
use indicatif::ProgressBar;
use reqwest::Url;
use reqwest::blocking::Response;
use std::io::Read;

/// Bytes read at a time.
const CHUNK_BYTES: usize = 1 << 18;
/// How often a broken transfer is resumed within one run, as long as each attempt makes progress.
const ATTEMPTS: usize = 5;
const MAX_REDIRECTS: usize = 10;

/// A file to fetch.
pub(super) struct Wanted<'a> {
    pub site: &'a Site,
    pub cache: &'a RepoCache,
    /// The repository's page on the hub.
    pub page: &'a str,
    pub commit: &'a str,
    /// Its path in the repository.
    pub path: &'a str,
    /// In bytes, as listed.
    pub size: u64,
    pub url: Url,
}

/// What the hub says a file is.
struct Offer {
    etag: String,
    sha256: Option<String>,
}

/// How an attempt ended that did not fail for good.
enum Attempt {
    Whole,
    Broken(anyhow::Error),
}

impl Wanted<'_> {
    /// Fetches the file unless the cache has its content.
    ///
    /// # Errors
    /// No access, no such file, no connection, or content that is not what the hub says it is. The cache then holds
    /// what it held before, and perhaps a part under a separate name, from which a later run continues.
    pub fn fetch(&self, bar: &ProgressBar) -> Result<()> {
        let offer = self.offer()?;
        let blob = self.cache.blob(&offer.etag);
        let _lock = self.cache.lock(&offer.etag)?;
        let here = std::fs::metadata(&blob).ok().map(|data| data.len());
        if here != Some(self.size) {
            // A blob of another length was left by a less careful program; renaming replaces it.
            let mut partial = Partial::open(&blob)?;
            if let Err(error) = self.complete(&mut partial, &offer, bar) {
                if partial.len() == 0 {
                    partial.discard();
                }
                return Err(error);
            }
            partial.finish(&blob)?;
        }
        self.cache.link(self.commit, self.path, &offer.etag)
    }

    /// Sends HEAD for the file, following redirects while they stay on the hub.
    fn offer(&self) -> Result<Offer> {
        let (mut url, mut linked_etag, mut etag, mut size) = (self.url.clone(), None, None, None);
        for _ in 0..MAX_REDIRECTS {
            let response = self.site.head(url.as_str())?;
            let status = response.status();
            if !status.is_success() && !status.is_redirection() {
                return Err(Refusal::of(&response).explain(self.site, self.page));
            }
            let header = |name| response.headers().get(name)?.to_str().ok();
            if let Some(commit) = header("x-repo-commit") {
                let wanted = self.commit;
                ensure!(commit == wanted, "the hub answers for commit {commit} instead of {wanted}; run this again");
            }
            linked_etag = linked_etag.or_else(|| header("x-linked-etag").map(bare_etag));
            etag = header("etag").map(bare_etag).or(etag);
            size = size.or_else(|| header("x-linked-size")?.parse::<u64>().ok());
            let next = header("location").and_then(|location| url.join(location).ok());
            match next.filter(|next| status.is_redirection() && next.origin() == url.origin()) {
                Some(next) => url = next,
                None => {
                    if status.is_success() {
                        size = size.or_else(|| header("content-length")?.parse().ok());
                    }
                    return self.checked_offer(linked_etag, etag, size);
                }
            }
        }
        Err(anyhow!("the hub redirects more than {MAX_REDIRECTS} times"))
    }

    fn checked_offer(&self, linked: Option<String>, plain: Option<String>, size: Option<u64>) -> Result<Offer> {
        if let Some(size) = size.filter(|size| *size != self.size) {
            return Err(anyhow!("wrong size: the hub lists {} bytes and offers {size}; run this again", self.size));
        }
        // Large files are named by their SHA-256, small ones by their git hash.
        let sha256 = linked.clone().filter(|tag| tag.len() == 64 && tag.chars().all(|c| c.is_ascii_hexdigit()));
        let etag = linked.or(plain).context("the hub gives no etag for it")?;
        ensure!(is_safe_name(&etag), "the hub gives an etag that cannot name a file: `{}`", etag.escape_debug());
        Ok(Offer { etag, sha256 })
    }

    /// Completes `partial` and verifies its content.
    fn complete(&self, partial: &mut Partial, offer: &Offer, bar: &ProgressBar) -> Result<()> {
        if partial.len() > self.size {
            partial.clear()?;
        }
        let mut attempts = 0;
        while partial.len() < self.size {
            let before = partial.len();
            attempts += 1;
            match self.attempt(partial, bar)? {
                Attempt::Whole => break,
                Attempt::Broken(_) if partial.len() > before && attempts < ATTEMPTS => {}
                Attempt::Broken(error) => {
                    let kept = partial.len();
                    return Err(error.context(format!(
                        "the download broke off after {kept} of {} bytes; a later run goes on from there",
                        self.size
                    )));
                }
            }
        }
        let found = partial.sha256();
        if let Some(sha256) = offer.sha256.as_ref().filter(|sha256| !sha256.eq_ignore_ascii_case(&found)) {
            partial.clear()?;
            return Err(anyhow!(
                "its content is not what the hub says it is (SHA-256 {found}, expected {sha256}); it was thrown away, \
                 run this again"
            ));
        }
        Ok(())
    }

    /// Makes one request for what is missing.
    fn attempt(&self, partial: &mut Partial, bar: &ProgressBar) -> Result<Attempt> {
        let mut response = self.site.get(self.url.as_str(), partial.len())?;
        match response.status().as_u16() {
            206 if starts_at(&response, partial.len()) => {}
            200 | 416 => partial.clear()?,
            206 => return Err(anyhow!("the server sends another part of the file than was asked for")),
            _ => return Err(self.refused(&response)),
        }
        if response.status() == 416 {
            response = self.site.get(self.url.as_str(), 0)?;
            if response.status() != 200 {
                return Err(self.refused(&response));
            }
        }
        let missing = self.size - partial.len();
        if let Some(announced) = response.content_length().filter(|length| *length != missing) {
            return Err(anyhow!("wrong size: the server announces {announced} bytes, expected {missing}"));
        }
        bar.set_position(partial.len());
        bar.reset_eta();
        self.receive(&mut response, partial, bar)
    }

    fn receive(&self, response: &mut Response, partial: &mut Partial, bar: &ProgressBar) -> Result<Attempt> {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let read = match response.read(&mut buffer) {
                Ok(0) if partial.len() == self.size => return Ok(Attempt::Whole),
                Ok(0) => return Ok(Attempt::Broken(anyhow!("the server closed the connection"))),
                Ok(read) => read,
                Err(error) => return Ok(Attempt::Broken(self.broken(error))),
            };
            if partial.len() + read as u64 > self.size {
                partial.clear()?;
                return Err(anyhow!("wrong size: the server sends more than the {} bytes listed", self.size));
            }
            partial.append(buffer.get(..read).unwrap_or_default())?;
            bar.inc(read as u64);
        }
    }

    fn broken(&self, error: std::io::Error) -> anyhow::Error {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<reqwest::Error>());
        if error.kind() == std::io::ErrorKind::TimedOut || inner.is_some_and(reqwest::Error::is_timeout) {
            return anyhow!("no data for {} s (HF_HUB_DOWNLOAD_TIMEOUT)", self.site.patience());
        }
        anyhow::Error::new(error)
    }

    /// A refusal by the hub itself is explained; one by a storage host behind it is a failure.
    fn refused(&self, response: &Response) -> anyhow::Error {
        if response.url().origin() == self.url.origin() {
            return Refusal::of(response).explain(self.site, self.page);
        }
        let host = response.url().host_str().unwrap_or_default();
        anyhow!("the storage host {host} answers HTTP {}; run this again", response.status().as_u16())
    }
}

/// Whether a partial response begins at byte `start`, as far as it says.
fn starts_at(response: &Response, start: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|range| range.to_str().ok());
    range.is_none_or(|range| range.strip_prefix("bytes ").is_some_and(|r| r.starts_with(&format!("{start}-"))))
}

/// An etag without quotes and weakness mark: the name of its blob.
fn bare_etag(etag: &str) -> String {
    etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"').to_string()
}

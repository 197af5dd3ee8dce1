//! A repository on the hub: what it holds, and fetching wanted files into the cache.

use super::cache::RepoCache;
use super::id::{Kind, RepoId, is_safe_name, is_safe_path};
use super::question::{self, Entry, Information};
use super::refusal::{self, Refusal};
use super::site::Site;
use super::transfer::Wanted;
use crate::console::download_bar;
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result, anyhow};
use reqwest::Url;
use reqwest::blocking::Response;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A repository, online.
pub(super) struct Repo<'a> {
    site: &'a Site,
    kind: Kind,
    id: &'a RepoId,
    cache: &'a RepoCache,
    /// Its page on the hub.
    page: String,
}

/// What a repository holds at a commit.
pub(super) struct Listing {
    pub commit: String,
    /// Sizes in bytes by path. Paths stay inside the repository.
    pub files: BTreeMap<String, u64>,
}

impl<'a> Repo<'a> {
    pub fn new(site: &'a Site, kind: Kind, id: &'a RepoId, cache: &'a RepoCache) -> Self {
        let prefix = if kind == Kind::Dataset { "/datasets" } else { "" };
        let page = format!("{}{prefix}/{}", site.endpoint(), id.id());
        Self { site, kind, id, cache, page }
    }

    /// Asks what the repository holds; for a model, the top folder only.
    ///
    /// # Errors
    /// No such repository or revision, no access, no connection; a path that leads out of the repository.
    pub fn list(&self) -> Result<Listing> {
        let commit = self.commit()?;
        ensure_valid!(is_safe_name(&commit), "the hub gives a commit that is none: `{}`", commit.escape_debug());
        let entries = self.tree(&commit)?;
        let files: BTreeMap<String, u64> = entries
            .into_iter()
            .filter_map(|entry| match entry {
                Entry::File { path, size } => Some((path, size)),
                Entry::Directory => None,
            })
            .collect();
        let outside = files.keys().find(|path| !is_safe_path(path));
        match outside {
            None => Ok(Listing { commit, files }),
            Some(path) => Err(invalid!(
                "it lists `{}`, a path that leads out of it or is none; nothing was fetched, and nothing of this \
                 repository should be trusted",
                path.escape_debug()
            )),
        }
    }

    /// The commit that the revision points to.
    fn commit(&self) -> Result<String> {
        let response = self.site.get(self.question(&["revision", &self.id.revision])?.as_str(), 0)?;
        if response.status().is_success() {
            return Ok(question::answer::<Information>(self.site, response)?.sha);
        }
        let refusal = Refusal::of(&response);
        if refusal.status != 404 || refusal.code.is_some() {
            return Err(refusal.explain(self.site, &self.page));
        }
        // Without a code it is the repository or the revision that is missing.
        let response = self.site.get(self.question(&[])?.as_str(), 0)?;
        Err(match response.status().as_u16() {
            200 => refusal::missing_revision(),
            404 => refusal::missing_repository(self.site),
            _ => self.refused(&response),
        })
    }

    fn tree(&self, commit: &str) -> Result<Vec<Entry>> {
        let mut url = self.question(&["tree", commit])?;
        if self.kind == Kind::Dataset {
            url.query_pairs_mut().append_pair("recursive", "true");
        }
        question::entries(self.site, url, |response| self.refused(response))
    }

    fn question(&self, rest: &[&str]) -> Result<Url> {
        question::address(self.site, self.kind, (&self.id.org, &self.id.name), rest)
    }

    fn refused(&self, response: &Response) -> anyhow::Error {
        Refusal::of(response).explain(self.site, &self.page)
    }

    /// Brings listed files into the cache; those already there are not requested.
    pub fn fetch(&self, listing: &Listing, paths: &[&str], quiet: bool) -> Result<()> {
        for &path in paths {
            let size = *listing.files.get(path).with_context(|| format!("{path} is not listed"))?;
            let cached = std::fs::metadata(self.cache.snapshot(&listing.commit).join(path));
            if cached.is_ok_and(|data| data.len() == size) {
                continue;
            }
            let bar = download_bar(&format!("{}/{path}", self.id.id()), size, quiet);
            let wanted = Wanted {
                site: self.site,
                cache: self.cache,
                page: &self.page,
                commit: &listing.commit,
                path,
                size,
                url: self.url(&listing.commit, path)?,
            };
            let fetched = wanted.fetch(&bar);
            bar.finish_and_clear();
            fetched.with_context(|| path.to_string())?;
        }
        Ok(())
    }

    /// Records the commit that the revision points to; returns the snapshot of this listing, complete as far as it was
    /// needed.
    pub fn finish(&self, listing: &Listing) -> Result<PathBuf> {
        if listing.commit != self.id.revision {
            self.cache.set_commit(&self.id.revision, &listing.commit)?;
        }
        Ok(self.cache.snapshot(&listing.commit))
    }

    fn url(&self, commit: &str, path: &str) -> Result<Url> {
        let mut url = Url::parse(&self.page)?;
        url.path_segments_mut()
            .map_err(|()| anyhow!("HF_ENDPOINT cannot be extended"))?
            .extend(["resolve", commit])
            .extend(path.split('/'));
        Ok(url)
    }
}

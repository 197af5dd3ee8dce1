//! A repository on the hub: what it holds, and fetching wanted files into the cache.

use super::cache::RepoCache;
use super::id::{RepoId, is_safe_name, is_safe_path};
use super::refusal;
use super::site::Site;
use super::transfer::Wanted;
use crate::console::download_bar;
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result, anyhow};
use hf_hub::HFResult;
use hf_hub::repository::RepoTreeEntry;
use reqwest::Url;
use std::collections::BTreeMap;
use std::path::PathBuf;

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
        let entries = self.tree(&commit).map_err(|error| refusal::explain(error, self.site, &self.page))?;
        let files: BTreeMap<String, u64> = entries
            .into_iter()
            .filter_map(|entry| match entry {
                RepoTreeEntry::File { path, size, .. } => Some((path, size)),
                RepoTreeEntry::Directory { .. } => None,
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
        let RepoId { org, name, revision } = self.id;
        let hub = &self.site.hub;
        let answer = match self.kind {
            Kind::Model => hub.model(org, name).info().revision(revision).send().map(|info| info.sha),
            Kind::Dataset => hub.dataset(org, name).info().revision(revision).send().map(|info| info.sha),
        };
        let error = match answer {
            Ok(commit) => return commit.ok_or_else(|| anyhow!("the hub does not say which commit it is at")),
            Err(error) => error,
        };
        if let hf_hub::HFError::RevisionNotFound { context: Some(context), .. } = &error
            && context.error_code.is_none()
        {
            // The client reports every 404 here as a missing revision.
            return Err(match self.exists() {
                Ok(true) => invalid!("the hub has the repository but not this revision"),
                Ok(false) => refusal::missing_repository(self.site),
                Err(error) => refusal::explain(error, self.site, &self.page),
            });
        }
        Err(refusal::explain(error, self.site, &self.page))
    }

    fn exists(&self) -> HFResult<bool> {
        let (org, name) = (&self.id.org, &self.id.name);
        match self.kind {
            Kind::Model => self.site.hub.model(org, name).exists().send(),
            Kind::Dataset => self.site.hub.dataset(org, name).exists().send(),
        }
    }

    fn tree(&self, commit: &str) -> HFResult<Vec<RepoTreeEntry>> {
        let (org, name) = (&self.id.org, &self.id.name);
        match self.kind {
            Kind::Model => self.site.hub.model(org, name).list_tree().revision(commit).send(),
            Kind::Dataset => self.site.hub.dataset(org, name).list_tree().revision(commit).recursive(true).send(),
        }
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

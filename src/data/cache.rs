//! Tokenised samples kept in files: data larger than memory are trained on from there, and the next run with the same
//! data and settings need not tokenise again.
//!
//! A file's name is a hash of what its samples were made of; file.rs has its layout. It appears under that name when it is
//! complete (partial.rs); when it is opened, all of it is checked.

mod file;
mod partial;

pub use file::{Told, Warning};

use super::samples::{Origin, Samples, Writer};
use super::{Cache, Example};
use crate::console::log;
use crate::error::listing;
use crate::invalid;
use anyhow::{Context, Error, Result};
use indicatif::{DecimalBytes, ProgressBar};
use partial::Partial;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Data files of fewer bytes are tokenised again each time, unless a folder is named: that takes seconds.
const WORTH_KEEPING: u64 = 64 << 20;
/// The folder beside a run's.
const FOLDER: &str = "asft-cache";
/// A file that was not used for so long is named when another is made.
const OLD: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Most old files that a message names.
const NAMED: usize = 5;
/// Characters of a hash in a file's name.
const NAME_LENGTH: usize = 32;
/// The ending of a file's name.
const ENDING: &str = "samples";

/// Where tokenised samples are kept.
pub struct CacheFolder {
    folder: PathBuf,
    /// Bytes that data files must have.
    from_bytes: u64,
    /// Whether a user named it: then it is an error if nothing can be kept there.
    is_named: bool,
    /// Whether it was said that nothing can be.
    is_told: AtomicBool,
}

/// Takes in one sample after another.
pub type Sink<'a> = dyn FnMut(&Example, Origin) -> Result<()> + 'a;

impl CacheFolder {
    /// `run`: the output folder.
    pub fn new(cache: &Cache, run: &Path) -> Option<Self> {
        let folder = |folder: PathBuf, is_named| {
            let from_bytes = if is_named { 0 } else { WORTH_KEEPING };
            Self { folder, from_bytes, is_named, is_told: AtomicBool::new(false) }
        };
        match cache {
            Cache::Use(false) => None,
            Cache::Use(true) => Some(folder(run.parent().unwrap_or(Path::new("")).join(FOLDER), false)),
            Cache::Folder(named) => Some(folder(named.into(), true)),
        }
    }

    /// Whether samples of data files of so many bytes are kept.
    pub fn is_for(&self, bytes: u64) -> bool {
        bytes >= self.from_bytes
    }

    /// The samples that `made_of` determines, from their file, which `make` fills first unless it is there and sound; in
    /// memory if it cannot be written and nobody named the folder.
    ///
    /// # Errors
    /// As `make`; a named folder that cannot be written.
    pub fn samples(
        &self,
        made_of: &Value,
        progress: &ProgressBar,
        make: impl FnOnce(&mut Sink) -> Result<Told>,
    ) -> Result<(Samples, Told)> {
        let path = &self.file(made_of);
        let told_of = |found| {
            log::info(&format!("samples tokenised earlier are read from {}", path.display()), json!({"cache": path}));
            found
        };
        match file::open(path, made_of, progress) {
            Ok(Some(found)) => return Ok(told_of(found)),
            Ok(None) => {}
            Err(error) => {
                let text = format!("{} cannot be used, and is made again: {error:#}", path.display());
                log::warn(&text, json!({"cache": path}));
            }
        }
        let partial = match Partial::begin(path) {
            Ok(partial) => partial,
            Err(error) => {
                let error = invalid!("{error}; name another folder, or set data.cache = false");
                self.give_up(path, error).context("data.cache")?;
                return in_memory(make);
            }
        };
        // Another process, or a rank of this run, may have made it meanwhile.
        if let Ok(Some(found)) = file::open(path, made_of, progress) {
            return Ok(told_of(found));
        }
        self.make(path, made_of, &partial, make)
    }

    /// The file for samples that `made_of` determines.
    fn file(&self, made_of: &Value) -> PathBuf {
        let hash = blake3::hash(made_of.to_string().as_bytes()).to_hex();
        self.folder.join(format!("{:.NAME_LENGTH$}.{ENDING}", hash.as_str()))
    }

    fn make(
        &self,
        path: &Path,
        made_of: &Value,
        partial: &Partial,
        make: impl FnOnce(&mut Sink) -> Result<Told>,
    ) -> Result<(Samples, Told)> {
        let mut writer = file::begin(&partial.file)?;
        // Once the file cannot be written.
        let mut memory: Option<Samples> = None;
        let told = make(&mut |example, origin| match &mut memory {
            Some(samples) => {
                samples.push(example, origin);
                Ok(())
            }
            None => {
                let Err(error) = writer.push(example, origin) else { return Ok(()) };
                memory = Some(self.recovered(path, error, &writer)?);
                Ok(())
            }
        })?;
        if let Some(samples) = memory {
            return Ok((samples, told));
        }
        let finished = file::finish(&mut writer, made_of, &told).and_then(|()| partial.publish(path));
        let samples = match finished.and_then(|()| file::written(path, &mut writer)) {
            Ok(samples) => samples,
            Err(error) => return Ok((self.recovered(path, error, &writer).context("data.cache")?, told)),
        };
        self.tell_kept(path);
        Ok((samples, told))
    }

    /// What was to be kept, in memory.
    fn recovered(&self, path: &Path, error: Error, writer: &Writer) -> Result<Samples> {
        self.give_up(path, error)?;
        writer.recover()
    }

    /// # Errors
    /// Why samples cannot be kept, if they are to be kept in a certain folder.
    fn give_up(&self, path: &Path, error: Error) -> Result<()> {
        if self.is_named {
            return Err(error.context(format!("cannot write {}", path.display())));
        }
        if !self.is_told.swap(true, Ordering::Relaxed) {
            let text = format!(
                "the tokenised samples cannot be kept in {}: {error:#}; they stay in memory, and the next run tokenises \
                 again",
                self.folder.display()
            );
            log::warn(&text, json!({"cache": self.folder}));
        }
        Ok(())
    }

    fn tell_kept(&self, path: &Path) {
        let bytes = path.metadata().map_or(0, |metadata| metadata.len());
        let text = format!(
            "the tokenised samples are kept in {} ({}): runs with the same data and settings read them from there",
            path.display(),
            DecimalBytes(bytes)
        );
        log::info(&text, json!({"cache": path, "bytes": bytes}));
        let (names, bytes) = self.old();
        if !names.is_empty() {
            let text = format!(
                "{} has {} files of tokenised samples ({}) that were not used for {} days; delete those that you do not \
                 need: {}",
                self.folder.display(),
                names.len(),
                DecimalBytes(bytes),
                OLD.as_secs() / (24 * 60 * 60),
                listing(&names, NAMED)
            );
            log::info(&text, json!({"cache": self.folder, "old_files": names.len(), "old_bytes": bytes}));
        }
    }

    /// The names of our files that were not used for long, and their bytes.
    fn old(&self) -> (Vec<String>, u64) {
        let (mut names, mut bytes) = (vec![], 0);
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let (name, Ok(metadata)) = (entry.file_name().to_string_lossy().into_owned(), entry.metadata()) else {
                continue;
            };
            // After the hash a partial file may have a suffix of its own.
            let is_hash = |stem: &str| {
                stem.get(..NAME_LENGTH).is_some_and(|hash| hash.chars().all(|c| c.is_ascii_hexdigit() || c == '-'))
            };
            let is_ours = name
                .split_once('.')
                .is_some_and(|(stem, ending)| is_hash(stem) && [ENDING, partial::ENDING].contains(&ending));
            let unused = metadata.modified().ok().and_then(|time| time.elapsed().ok());
            if is_ours && unused.is_some_and(|unused| unused > OLD) {
                names.push(name);
                bytes += metadata.len();
            }
        }
        names.sort();
        (names, bytes)
    }
}

/// The samples that `make` gives.
///
/// # Errors
/// As `make`.
pub fn in_memory(make: impl FnOnce(&mut Sink) -> Result<Told>) -> Result<(Samples, Told)> {
    let mut samples = Samples::default();
    let told = make(&mut |example, origin| {
        samples.push(example, origin);
        Ok(())
    })?;
    Ok((samples, told))
}

#[cfg(test)]
mod tests;

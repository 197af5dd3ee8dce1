//! A run's output folder: the names of things in it, and which run it belongs to.

use crate::checkpoint::{remove_staged, write_atomic};
use crate::config::Settings;
use crate::outputs::Outputs;
use crate::ranks::Ranks;
use crate::report::{Page, REPORT, Results, RunFiles, RunRecord};
use crate::train::options::Tuning;
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

const METRICS: &str = RunFiles::METRICS;
const MODULES: &str = "modules.jsonl";
const CONFIG: &str = RunFiles::CONFIG;
const RECORD: &str = RunFiles::RECORD;
const TENSORBOARD: &str = "tensorboard";
const DIRECTION: &str = "direction.safetensors";
const CHECKPOINTS: &str = "checkpoints";
const ADAPTER: &str = "adapter";
const MODEL: &str = "model";

/// What a run removes of an earlier one.
const CLEARED: [&str; 9] = [RECORD, REPORT, METRICS, MODULES, CONFIG, TENSORBOARD, CHECKPOINTS, ADAPTER, MODEL];

/// What is at a run's output path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// No folder, or an empty one.
    Nothing,
    /// An earlier run, finished or not.
    Run,
}

pub struct OutputFolder {
    dir: PathBuf,
    /// What existed before this process wrote anything.
    had_dir: bool,
    had_direction: bool,
}

impl OutputFolder {
    pub fn new(settings: &Settings) -> Self {
        let dir = PathBuf::from(&settings.output.dir);
        let (had_dir, had_direction) = (dir.exists(), direction_path(settings).exists());
        Self { dir, had_dir, had_direction }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn metrics(&self) -> PathBuf {
        self.dir.join(METRICS)
    }

    pub fn modules(&self) -> PathBuf {
        self.dir.join(MODULES)
    }

    pub fn config(&self) -> PathBuf {
        self.dir.join(CONFIG)
    }

    /// `run.json`, the last thing that a run writes.
    pub fn record(&self) -> PathBuf {
        self.dir.join(RECORD)
    }

    /// Where TensorBoard's files go.
    pub fn tensorboard(&self) -> PathBuf {
        self.dir.join(TENSORBOARD)
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.dir.join(CHECKPOINTS)
    }

    /// Where the adapter or the model goes.
    pub fn result(&self, method: Tuning) -> PathBuf {
        self.dir.join(match method {
            Tuning::Lora => ADAPTER,
            Tuning::Full => MODEL,
        })
    }

    /// What is there.
    ///
    /// # Errors
    /// A folder that holds something else.
    pub fn content(&self) -> Result<Content> {
        let dir = &self.dir;
        let empty = std::fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none());
        if empty {
            return Ok(Content::Nothing);
        }
        // A run killed early has only the direction, or not even that.
        let is_run = [METRICS, CONFIG, DIRECTION, CHECKPOINTS].iter().any(|name| dir.join(name).exists());
        ensure_valid!(
            is_run || self.only_staged(),
            "output.dir {} is not empty, and not an earlier run; choose another folder",
            dir.display()
        );
        Ok(Content::Run)
    }

    fn only_staged(&self) -> bool {
        let mut entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.all(|entry| entry.file_name().to_string_lossy().starts_with(crate::checkpoint::STAGED))
    }

    /// As [`OutputFolder::lock`], if the folder exists.
    pub fn lock_existing(&self) -> Result<Option<File>> {
        let lock = || self.dir.is_dir().then(|| self.open_locked()).transpose();
        Ok(Ranks::here().on_first(lock)?.flatten())
    }

    /// Keeps other processes from writing here for as long as the file returned on the first rank is open. `held`: the
    /// lock from [`OutputFolder::lock_existing`].
    pub fn lock(&self, held: Option<File>) -> Result<Option<File>> {
        Ranks::here().on_first(|| held.map_or_else(|| self.open_locked(), Ok))
    }

    fn open_locked(&self) -> Result<File> {
        let opening = || format!("opening {}", self.dir.display());
        std::fs::create_dir_all(&self.dir).with_context(opening)?;
        let file = File::open(&self.dir).with_context(opening)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                Err(invalid!("another asft process is writing in output.dir {}", self.dir.display()))
            }
            // Some network file systems have no locks; that is no reason not to train.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
        }
    }

    /// Bytes that a run will remove when it continues or replaces the one there.
    pub fn bytes_to_go(&self) -> u64 {
        [CHECKPOINTS, ADAPTER, MODEL].iter().map(|name| bytes_of(&self.dir.join(name))).sum()
    }

    /// Whether there are files of a run, but no config that says of which.
    pub fn is_nameless(&self) -> bool {
        !self.config().is_file() && [RECORD, METRICS, ADAPTER, MODEL].iter().any(|name| self.dir.join(name).exists())
    }

    /// Refuses a folder that is an input of the run or lies in one, or, if what is in it is to be replaced, has one of
    /// the inputs there. The direction may be there, and the config that was read.
    pub fn check_against_inputs(&self, settings: &Settings, is_replaced: bool) -> Result<()> {
        let read = settings.declare_inputs(Outputs::new(is_replaced)).kept("output.dir", &self.dir);
        read.check()?;
        let removed = CLEARED.iter().filter(|_| is_replaced).map(|name| self.dir.join(name));
        settings.declare_inputs(Outputs::new(is_replaced)).removed("output.dir", removed).check()
    }

    /// Removes the files of an earlier run, and only those. The direction stays: it has just been computed or checked.
    pub fn clear(&self) -> Result<()> {
        remove_staged(&self.dir)?;
        for name in CLEARED {
            remove(&self.dir.join(name))?;
        }
        Ok(())
    }

    /// Turns a finished run into an unfinished one that is about to continue; its result stays until there is a new
    /// one.
    pub fn reopen(&self) -> Result<()> {
        remove_staged(&self.dir)?;
        remove(&self.dir.join(REPORT))?;
        remove(&self.record())
    }

    /// Removes what a run that cannot start has written, the direction that it computed included.
    pub fn undo(&self) {
        if !Ranks::here().is_first() {
            return;
        }
        if !self.had_dir {
            let _best_effort = std::fs::remove_dir_all(&self.dir);
        } else if !self.had_direction {
            let _best_effort = std::fs::remove_file(self.dir.join(DIRECTION));
        }
    }

    /// Writes the record of this run, its inputs and its results: `report.html`, then `run.json`.
    pub fn write_record(&self, record: &RunRecord, results: &Results) -> Result<()> {
        let record = record.to_json(CONFIG, results)?;
        let text = serde_json::to_string_pretty(&record)? + "\n";
        let page = Page::of(RunFiles { record: Some(record), ..RunFiles::read(&self.dir)? });
        write_atomic(&self.dir.join(REPORT), |file| Ok(file.write_all(page.to_html().as_bytes())?))?;
        write_atomic(&self.record(), |file| Ok(file.write_all(text.as_bytes())?))
    }

    /// Writes every resolved setting.
    pub fn write_config(&self, settings: &Settings) -> Result<()> {
        let text = settings.to_toml()?;
        write_atomic(&self.config(), |file| Ok(file.write_all(text.as_bytes())?))
    }
}

/// Removes a file or folder, if it is there.
pub fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() {
        std::fs::remove_dir_all(path)
    } else if path.exists() {
        std::fs::remove_file(path)
    } else {
        Ok(())
    };
    removed.with_context(|| format!("removing {}", path.display()))
}

/// Bytes of the files in a folder and its subfolders; 0 for what cannot be read.
fn bytes_of(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_of(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(bytes).sum()
}

/// Where a run keeps the direction that it computes.
pub fn direction_path(settings: &Settings) -> PathBuf {
    Path::new(&settings.output.dir).join(DIRECTION)
}

//! `results.jsonl`: a row for each result, appended as soon as it is known, so that a comparison that stops continues
//! where it was.

use super::grid::{Case, Run};
use super::inputs::Contents;
use crate::ensure_valid;
use crate::eval::{Outcome, Suite};
use crate::invalid;
use crate::report::{Value, hash_file, says_nothing};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// A number of one result: an evaluation's value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// `harmful score`, or `harmful score: told` for an evaluation's other findings.
    pub name: String,
    pub value: f64,
    /// Samples behind a rate.
    pub total: Option<usize>,
    /// Of an evaluation's main value, a rate: which samples it counts, a `1` or `0` for each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hits: Option<String>,
}

/// One result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub key: String,
    #[serde(flatten)]
    pub case: Case,
    /// `None` for the models of the pair themselves.
    pub seed: Option<u64>,
    pub measured: Vec<Measured>,
    /// Of the training.
    pub dir: Option<String>,
    /// The sample files that it was trained and measured with.
    #[serde(default, skip_serializing_if = "Contents::is_empty")]
    pub data: Contents,
    /// Why there is no result.
    pub error: Option<String>,
}

impl Row {
    pub fn new(run: &Run, outcomes: &[Outcome], dir: &Path, data: Contents) -> Self {
        Self {
            key: run.key(),
            case: run.case.clone(),
            seed: Some(run.seed),
            measured: measured(outcomes),
            dir: Some(dir.display().to_string()),
            data,
            error: None,
        }
    }

    pub fn failed(run: &Run, error: String) -> Self {
        let (key, case) = (run.key(), run.case.clone());
        let data = Contents::new();
        Self { key, case, seed: Some(run.seed), measured: vec![], dir: None, data, error: Some(error) }
    }

    /// A model that was not trained here.
    pub fn reference(name: &str, outcomes: &[Outcome], data: Contents) -> Self {
        let case = Case { method: name.to_string(), sweep: vec![], settings: vec![] };
        Self { key: name.to_string(), case, seed: None, measured: measured(outcomes), dir: None, data, error: None }
    }

    /// Its numbers on a line.
    pub fn text(&self) -> String {
        let number = |m: &Measured| format!("{} {}", m.name, show(m.value, m.total.is_some()));
        let told = self.measured.iter().filter(|m| !says_nothing(&m.name, m.value));
        told.map(number).collect::<Vec<_>>().join(", ")
    }
}

/// A share as a percentage, any other number as it is.
pub fn show(value: f64, share: bool) -> String {
    if share { format!("{:.1} %", value * 100.0) } else { format!("{value:.4}") }
}

fn measured(outcomes: &[Outcome]) -> Vec<Measured> {
    let of = |outcome: &Outcome| -> Vec<Measured> {
        let hits = |main: bool| {
            let hits = outcome.hits.iter().map(|hit| if *hit { '1' } else { '0' });
            (main && !outcome.hits.is_empty()).then(|| hits.collect())
        };
        let measured = |(i, (name, value)): (usize, (String, Value))| {
            let total = if let Value::Rate(rate) = value { Some(rate.total) } else { None };
            Measured { name, value: value.number(), total, hits: hits(i == 0) }
        };
        outcome.readings().into_iter().enumerate().map(measured).collect()
    };
    outcomes.iter().flat_map(of).collect()
}

/// What the rows of a file depend on besides their runs.
#[derive(PartialEq, Serialize, Deserialize)]
struct Head {
    /// Hashes of the config and of every evaluation.
    inputs: Json,
}

/// The file and what is in it.
pub struct Results {
    path: PathBuf,
    head: Head,
    rows: Vec<Row>,
}

const RESULTS: &str = "results.jsonl";

/// What is made of the results, beside them: the table, and the pictures, as SVG and PNG.
pub const TABLE: &str = "table.txt";
pub const PICTURES: [&str; 4] = ["figure", "selected", "sweep", "worst"];

impl Results {
    /// Whether there are results in `dir`.
    pub fn are_in(dir: &Path) -> bool {
        Self::file(dir).exists()
    }

    /// Where the results of a comparison in `dir` stand.
    pub fn file(dir: &Path) -> PathBuf {
        dir.join(RESULTS)
    }

    /// Reads the results in `dir`, or starts without any; nothing is written before [`Results::lock`].
    ///
    /// # Errors
    /// Results of another config or suite; a line that is not a result, other than an unfinished last one.
    pub fn open(dir: &Path, suite: &Suite, config: &Path) -> Result<Self> {
        let path = Self::file(dir);
        let evaluations: Vec<String> =
            suite.eval.iter().map(|evaluation| json_hash(&serde_json::json!(evaluation))).collect();
        let head = Head { inputs: serde_json::json!({"config": hash_file(config)?, "evaluations": evaluations}) };
        if !std::fs::metadata(&path).is_ok_and(|file| file.len() > 0) {
            return Ok(Self { path, head, rows: vec![] });
        }
        let lines: Vec<String> =
            BufReader::new(File::open(&path).with_context(|| format!("reading {}", path.display()))?)
                .lines()
                .collect::<std::io::Result<_>>()?;
        let written: Option<Head> = lines.first().and_then(|line| serde_json::from_str(line).ok());
        ensure_valid!(
            written.is_some_and(|written| written == head),
            "{} belongs to another config or suite; choose another `dir`, or remove the file to measure everything anew",
            path.display()
        );
        let mut rows: Vec<Row> = vec![];
        for (i, line) in lines.iter().enumerate().skip(1) {
            match serde_json::from_str(line) {
                Ok(row) => add(&mut rows, row),
                // A killed process leaves half a line.
                Err(_) if i + 1 == lines.len() => cut_line(&path)?,
                Err(e) => return Err(invalid!("{}:{}: {e}", path.display(), i + 1)),
            }
        }
        Ok(Self { path, head, rows })
    }

    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Refuses results obtained with other contents of the files in `now`.
    ///
    /// # Errors
    /// The files that differ.
    pub fn check(&self, now: &Contents) -> Result<()> {
        let recorded = self.rows.iter().flat_map(|row| &row.data);
        let differs = |(file, hash): &(&String, &String)| now.get(*file).is_some_and(|now| now != *hash);
        let changed: BTreeSet<&str> = recorded.filter(differs).map(|(file, _)| file.as_str()).collect();
        ensure_valid!(
            changed.is_empty(),
            "{} was made with other contents of {}; restore these, or choose another `dir`",
            self.path.display(),
            changed.into_iter().collect::<Vec<_>>().join(", ")
        );
        Ok(())
    }

    /// Keeps other processes from adding results for as long as the returned file is open, and begins the file.
    ///
    /// # Errors
    /// Another process holds the lock; the file cannot be written.
    pub fn lock(&self) -> Result<File> {
        let opening = || format!("opening {}", self.path.display());
        let dir = self.path.parent().unwrap_or(Path::new(""));
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let file = OpenOptions::new().append(true).create(true).open(&self.path).with_context(opening)?;
        match file.try_lock() {
            Ok(()) => {
                if file.metadata().with_context(opening)?.len() == 0 {
                    self.write(&self.head)?;
                }
                Ok(file)
            }
            Err(TryLockError::WouldBlock) => {
                Err(invalid!("another asft compare is at work in {}; wait for it", self.path.display()))
            }
            Err(TryLockError::Error(e)) => Err(e).with_context(opening),
        }
    }

    /// Whether there is a result with that key. A failure does not count: it is tried again.
    pub fn has(&self, key: &str) -> bool {
        self.rows.iter().any(|row| row.key == key && row.error.is_none())
    }

    /// Adds a row to the file, which replaces an earlier failure.
    pub fn append(&mut self, row: Row) -> Result<()> {
        self.write(&row)?;
        add(&mut self.rows, row);
        Ok(())
    }

    fn write(&self, line: &impl Serialize) -> Result<()> {
        let written = || format!("writing {}", self.path.display());
        let mut file = OpenOptions::new().append(true).create(true).open(&self.path).with_context(written)?;
        let line = serde_json::to_string(line)? + "\n";
        file.write_all(line.as_bytes()).and_then(|()| file.sync_data()).with_context(written)
    }
}

/// The later row of a key counts: it may follow a failure.
fn add(rows: &mut Vec<Row>, row: Row) {
    rows.retain(|other| other.key != row.key);
    rows.push(row);
}

/// Removes what follows the last line break.
fn cut_line(path: &Path) -> Result<()> {
    let text = std::fs::read(path)?;
    let end = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    // A complete last line that cannot be read is not half a line.
    ensure_valid!(end < text.len(), "{}: the last line is not a result", path.display());
    OpenOptions::new().write(true).open(path)?.set_len(end as u64)?;
    Ok(())
}

fn json_hash(value: &Json) -> String {
    blake3::hash(value.to_string().as_bytes()).to_hex()[..16].to_string()
}

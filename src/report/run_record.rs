//! `run.json`: what made this run's output, so that it can be made again: versions, hashes of the inputs, the name of
//! the settings file beside it, time and memory.

use crate::memory;
use crate::ranks::Ranks;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The candle release in Cargo.lock (a test compares them).
const CANDLE_VERSION: &str = "0.11.1";

/// One input of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Input {
    /// A path, or a hub id with its revision.
    source: String,
    /// BLAKE3, in hex.
    hash: String,
}

/// What a run did in all, whatever the number of processes that it took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Optimizer steps taken.
    pub steps: usize,
    /// Steps whose loss or gradient was not finite.
    pub skipped_steps: usize,
    /// Steps done when the run was resumed, each time.
    pub resumed_at: Vec<usize>,
    pub tokens: usize,
    pub label_tokens: usize,
    /// From the start of each process to the last state that was kept of it, preparation included.
    pub elapsed_seconds: f64,
}

/// How large a module's update ΔW is at the end of a run, in the Frobenius norm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpdateNorm {
    pub module: String,
    pub norm: f64,
    /// ‖CΔW‖, where there is a direction.
    pub parallel: Option<f64>,
    /// ‖(I − C)ΔW‖.
    pub orthogonal: Option<f64>,
}

/// A `run.json` in the making.
pub struct RunRecord {
    began: Instant,
    started: String,
    inputs: BTreeMap<String, Input>,
}

#[derive(Serialize)]
struct RunFile<'a> {
    asft_version: &'a str,
    features: Vec<&'a str>,
    candle_version: &'a str,
    platform: String,
    threads: usize,
    /// Processes that trained as one.
    ranks: usize,
    settings: &'a str,
    inputs: &'a BTreeMap<String, Input>,
    started: &'a str,
    #[serde(flatten)]
    totals: &'a Totals,
    tokens_per_second: f64,
    peak_memory_bytes: u64,
    update_norms: &'a [UpdateNorm],
}

impl RunRecord {
    /// Starts the clock.
    pub fn start() -> Self {
        Self { began: Instant::now(), started: utc_now(), inputs: BTreeMap::new() }
    }

    /// Seconds since the start.
    pub fn elapsed_seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Notes an input under a name such as `aligned` or `train`.
    pub fn input(&mut self, name: &str, source: &str, hash: String) {
        self.inputs.insert(name.to_string(), Input { source: source.to_string(), hash });
    }

    /// The hash of each input by its name.
    pub fn hashes(&self) -> impl Iterator<Item = (&str, &str)> {
        self.inputs.iter().map(|(name, input)| (name.as_str(), input.hash.as_str()))
    }

    /// The file's content; `settings` is the name of the resolved config beside it.
    pub fn to_json(&self, settings: &str, totals: &Totals, update_norms: &[UpdateNorm]) -> Result<Value> {
        Ok(serde_json::to_value(RunFile {
            asft_version: env!("CARGO_PKG_VERSION"),
            features: crate::version::features(),
            candle_version: CANDLE_VERSION,
            platform: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            threads: rayon::current_num_threads(),
            ranks: Ranks::here().size(),
            settings,
            inputs: &self.inputs,
            started: &self.started,
            totals,
            tokens_per_second: totals.tokens as f64 / totals.elapsed_seconds,
            peak_memory_bytes: memory::peak_bytes(),
            update_norms,
        })?)
    }
}

/// BLAKE3 of a file's content, in hex.
pub fn hash_file(path: &Path) -> Result<String> {
    let hashing = || format!("hashing {}", path.display());
    let file = std::fs::File::open(path).with_context(hashing)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).with_context(hashing)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Now, in UTC.
pub(super) fn utc_now() -> String {
    utc(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

/// Seconds since 1970 as `2026-01-31T23:59:59Z`.
///
/// Counts in years that begin on 1 March, so that the leap day is a year's last, within eras of 400 years.
fn utc(seconds: u64) -> String {
    const DAYS_TO_1970: u64 = 719_468; // from 1 March of year 0
    const DAYS_PER_ERA: u64 = 146_097;
    let (days, second) = (seconds / 86_400 + DAYS_TO_1970, seconds % 86_400);
    let (era, day_of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months from March have 31, 30, 31, 30, 31 days, over and over: 153 in five.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_candle_version_is_the_locked_one() {
        let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).unwrap();
        assert!(lock.contains(&format!("name = \"candle-core\"\nversion = \"{CANDLE_VERSION}\"")));
    }

    // date -u -d @N +%FT%TZ
    #[test]
    fn timestamps_equal_those_of_date() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), expected);
        }
    }

    #[test]
    fn the_file_holds_what_was_noted() {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("train.jsonl");
        std::fs::write(&input, "abc").unwrap();
        let mut record = RunRecord::start();
        record.input("train", "train.jsonl", hash_file(&input).unwrap());
        let totals = Totals { steps: 3, tokens: 50, label_tokens: 20, elapsed_seconds: 2.0, ..Totals::default() };
        let run = record.to_json("config.toml", &totals, &[]).unwrap();
        // b3sum of "abc"
        let hash = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        assert_eq!(run["inputs"]["train"]["hash"], hash);
        assert_eq!((run["steps"].as_u64(), run["settings"].as_str()), (Some(3), Some("config.toml")));
        assert!(run["peak_memory_bytes"].as_u64() > Some(0));
    }
}

//! `run.json`: what this run's output was made with, so that it can be reproduced: versions, hashes of the inputs, the
//! name of the settings file beside it, time and memory.

use super::evaluated::SuiteEnds;
use super::trend::LossEnds;
use crate::console::utc_now;
use crate::memory;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

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

/// What a run did in total, however many processes it took.
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
    /// From the start of each process to its last saved state, preparation included.
    pub elapsed_seconds: f64,
}

/// The Frobenius norm of a module's update ΔW at the end of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpdateNorm {
    pub module: String,
    pub norm: f64,
    /// ‖CΔW‖, if there is a direction.
    pub parallel: Option<f64>,
    /// ‖(I − C)ΔW‖.
    pub orthogonal: Option<f64>,
}

/// What a run has to show at its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Results {
    #[serde(flatten)]
    pub totals: Totals,
    /// `None` if no step was taken.
    pub loss: Option<LossEnds>,
    /// `None` without a suite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<SuiteEnds>,
    pub update_norms: Vec<UpdateNorm>,
}

/// A `run.json` under construction.
pub struct RunRecord {
    device: &'static str,
    began: Instant,
    started: String,
    ranks: usize,
    inputs: BTreeMap<String, Input>,
    samples: BTreeMap<String, usize>,
    template_variables: Value,
}

#[derive(Serialize)]
struct RunFile<'a> {
    asft_version: &'a str,
    features: Vec<&'a str>,
    candle_version: &'a str,
    platform: String,
    device: &'a str,
    threads: usize,
    ranks: usize,
    settings: &'a str,
    inputs: &'a BTreeMap<String, Input>,
    samples: &'a BTreeMap<String, usize>,
    #[serde(skip_serializing_if = "Value::is_null")]
    template_variables: &'a Value,
    started: &'a str,
    tokens_per_second: f64,
    peak_memory_bytes: u64,
    #[serde(flatten)]
    results: &'a Results,
}

impl RunRecord {
    /// Starts the clock. `ranks`: the processes that train as one.
    pub fn start(ranks: usize) -> Self {
        Self {
            device: "cpu",
            began: Instant::now(),
            started: utc_now(),
            ranks,
            inputs: BTreeMap::new(),
            samples: BTreeMap::new(),
            template_variables: Value::Null,
        }
    }

    /// Seconds since the start.
    pub fn elapsed_seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Records what the run computes on, which the settings may leave open.
    pub fn device(&mut self, name: &'static str) {
        self.device = name;
    }

    /// Records an input under a name such as `aligned` or `train`.
    pub fn input(&mut self, name: &str, source: &str, hash: String) {
        self.inputs.insert(name.to_string(), Input { source: source.to_string(), hash });
    }

    /// Records how many samples of a set the run uses.
    pub fn samples(&mut self, name: &str, count: usize) {
        self.samples.insert(name.to_string(), count);
    }

    /// Records what the chat template was given besides the conversations, which whoever serves the result should set too.
    pub fn template_variables(&mut self, variables: Value) {
        self.template_variables = variables;
    }

    /// The hash of each input by its name.
    pub fn hashes(&self) -> impl Iterator<Item = (&str, &str)> {
        self.inputs.iter().map(|(name, input)| (name.as_str(), input.hash.as_str()))
    }

    /// The file's content; `settings` is the name of the resolved config beside it.
    pub fn to_json(&self, settings: &str, results: &Results) -> Result<Value> {
        let totals = &results.totals;
        Ok(serde_json::to_value(RunFile {
            asft_version: env!("CARGO_PKG_VERSION"),
            features: crate::version::features(),
            candle_version: CANDLE_VERSION,
            platform: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            device: self.device,
            threads: rayon::current_num_threads(),
            ranks: self.ranks,
            settings,
            inputs: &self.inputs,
            samples: &self.samples,
            template_variables: &self.template_variables,
            started: &self.started,
            tokens_per_second: totals.tokens as f64 / totals.elapsed_seconds,
            peak_memory_bytes: memory::peak_bytes(),
            results,
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

/// The hash of a file, or one of the hashes of several in their order.
pub fn hash_files(paths: &[PathBuf]) -> Result<String> {
    if let [only] = paths {
        return hash_file(only);
    }
    let mut hasher = blake3::Hasher::new();
    for path in paths {
        hasher.update(hash_file(path)?.as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_candle_version_is_the_locked_one() {
        let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).unwrap();
        assert!(lock.contains(&format!("name = \"candle-core\"\nversion = \"{CANDLE_VERSION}\"")));
    }

    #[test]
    fn the_file_holds_what_was_noted() {
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("train.jsonl");
        std::fs::write(&input, "abc").unwrap();
        let mut record = RunRecord::start(1);
        record.input("train", "train.jsonl", hash_file(&input).unwrap());
        record.template_variables(serde_json::json!({"enable_thinking": false}));
        let totals = Totals { steps: 3, tokens: 50, label_tokens: 20, elapsed_seconds: 2.0, ..Totals::default() };
        let loss = Some(LossEnds { steps: 1, first: 2.5, last: 2.0, above_start: false });
        let run = record.to_json("config.toml", &Results { totals, loss, ..Results::default() }).unwrap();
        // b3sum of "abc"
        let hash = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        assert_eq!(run["inputs"]["train"]["hash"], hash);
        assert_eq!((run["steps"].as_u64(), run["settings"].as_str()), (Some(3), Some("config.toml")));
        let loss = serde_json::json!({"steps": 1, "first": 2.5, "last": 2.0, "above_start": false});
        assert_eq!((&run["loss"], &run["update_norms"]), (&loss, &serde_json::json!([])));
        assert_eq!(run["template_variables"]["enable_thinking"], false);
        let plain = RunRecord::start(1).to_json("config.toml", &Results::default()).unwrap();
        assert_eq!(plain.get("template_variables"), None);
        assert!(run["peak_memory_bytes"].as_u64() > Some(0));
    }
}

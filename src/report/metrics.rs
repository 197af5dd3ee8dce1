//! `metrics.jsonl`: one JSON object per optimizer step, validation or measurement of the suite, flushed line by line, so that a run that dies
//! leaves what it measured; and `modules.jsonl`, the same for single modules. Numbers are written so that they read
//! back as the same f64; NaN and infinity, which JSON lacks, are written as null.

use super::evaluated::SuiteRow;
use super::events::EventFile;
use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// What a step of Lisa trains on: safety data or the task's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Alignment,
    Finetune,
}

/// What one optimizer step measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepRow {
    /// Optimizer steps done, this one included.
    pub step: usize,
    /// Passes over the data so far, as a fraction.
    pub epoch: f64,
    /// Lisa's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// `task_loss + penalty`, plus `proximal` if there is one.
    pub loss: f64,
    /// Mean cross-entropy over the step's label tokens, or what constrained SFT replaces it with.
    pub task_loss: f64,
    /// The penalty, λ included.
    pub penalty: f64,
    /// λ of this step, if it is found while training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda: Option<f64>,
    /// What λ keeps below `asft.max_orthogonal`: √(Σ ‖M ΔW‖² / Σ ‖W‖²) before this step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub penalised_share: Option<f64>,
    /// The defence's own term: Lisa's proximal term, the anchor's, the divergence of `kl` and `safe_grad`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proximal: Option<f64>,
    /// Global L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Tokens in the step, padding excluded.
    pub tokens: usize,
    /// The number of them that are trained on.
    pub label_tokens: usize,
    pub tokens_per_second: f64,
    /// Since training began.
    pub elapsed_seconds: f64,
    pub peak_memory_bytes: u64,
}

/// What one pass over the validation samples measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvalRow {
    /// Optimizer steps done before it.
    pub step: usize,
    /// Mean cross-entropy over label tokens.
    pub eval_loss: f64,
    /// The label tokens of that mean.
    pub eval_tokens: usize,
}

/// What one module's update was before a step. The shares are those of `asft inspect`, taken with the direction's own C
/// and V whatever `asft.projector` says; they are present if there is a direction and neither V nor ΔW is 0.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModuleRow {
    /// Optimizer steps done, including the one about to be taken: the same number as in its row of `metrics.jsonl`.
    pub step: usize,
    pub module: String,
    /// ‖ΔW‖_F of the effective update, alpha / rank included.
    pub norm: f64,
    /// ‖C ΔW‖_F / ‖ΔW‖_F
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aligned: Option<f64>,
    /// ‖(I − C) ΔW‖_F / ‖ΔW‖_F
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orthogonal: Option<f64>,
    /// ‖P ΔW‖_F / ‖ΔW‖_F, with P the projector on V's leading left singular vectors that hold 0.9 of ‖V‖_F².
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subspace_aligned: Option<f64>,
    /// ‖(I − P) ΔW‖_F / ‖ΔW‖_F
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subspace_orthogonal: Option<f64>,
    /// √d_in ‖ΔW Vᵀ‖_F / (‖ΔW‖_F ‖V‖_F): 1 for an update without preference among its inputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<f64>,
    /// ⟨ΔW, V⟩ / (‖ΔW‖_F ‖V‖_F): below 0 where the update un-aligns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed: Option<f64>,
    /// Norm of the penalty's gradient over that of the task's, for this module's parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradient_ratio: Option<f64>,
}

/// A step that was not taken, because its loss or gradient is not finite.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SkippedRow {
    /// Optimizer steps done, this one included: its data are not repeated.
    pub step: usize,
    /// What is not finite.
    pub skipped: String,
    /// Where the samples are, as `FILE:line`: those of the first micro-batch whose loss is not finite, or else all.
    pub samples: Vec<String>,
}

/// An open `metrics.jsonl`, or `modules.jsonl`, of a run.
pub struct Metrics {
    file: File,
    path: PathBuf,
    bytes: u64,
    events: Option<EventFile>,
}

impl Metrics {
    /// Starts the file afresh.
    pub fn create(path: &Path) -> Result<Self> {
        let creating = || format!("creating {}", path.display());
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(creating)?;
        }
        let file = File::create(path).with_context(creating)?;
        Ok(Self { file, path: path.to_path_buf(), bytes: 0, events: None })
    }

    /// Continues after the first `bytes` of the file; what an interrupted run wrote after them is cut off. A shorter
    /// file (someone changed it) keeps its complete lines.
    pub fn resume(path: &Path, bytes: u64) -> Result<Self> {
        let opening = || format!("opening {}", path.display());
        let mut file =
            File::options().create(true).truncate(false).read(true).write(true).open(path).with_context(opening)?;
        let mut kept = Vec::new();
        Read::by_ref(&mut file).take(bytes).read_to_end(&mut kept).with_context(opening)?;
        let bytes = kept.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end as u64 + 1);
        file.set_len(bytes).and_then(|()| file.seek(SeekFrom::End(0))).with_context(opening)?;
        Ok(Self { file, path: path.to_path_buf(), bytes, events: None })
    }

    /// Also writes all rows, past and future, as TensorBoard event files in `dir`.
    pub fn mirror_to(&mut self, dir: &Path) -> Result<()> {
        self.events = Some(EventFile::begin(dir, &read_rows(&self.path)?)?);
        Ok(())
    }

    /// The file's length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes what was written so far survive a system crash.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().with_context(|| format!("syncing {}", self.path.display()))?;
        self.events.as_ref().map_or(Ok(()), EventFile::sync)
    }

    pub fn step(&mut self, row: &StepRow) -> Result<()> {
        self.line(row)
    }

    pub fn module(&mut self, row: &ModuleRow) -> Result<()> {
        self.line(row)
    }

    pub fn eval(&mut self, row: &EvalRow) -> Result<()> {
        self.line(row)
    }

    pub fn suite(&mut self, row: &SuiteRow) -> Result<()> {
        self.line(row)
    }

    pub fn skipped(&mut self, row: &SkippedRow) -> Result<()> {
        self.line(row)
    }

    fn line(&mut self, row: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(row)?;
        line.push(b'\n');
        // One unbuffered write: no reader sees half a line, and nothing is lost in a buffer.
        self.file.write_all(&line).with_context(|| format!("writing {}", self.path.display()))?;
        self.bytes += line.len() as u64;
        match (&mut self.events, serde_json::to_value(row)?) {
            (Some(events), Value::Object(row)) => events.row(&row),
            _ => Ok(()),
        }
    }
}

/// The rows of a `metrics.jsonl`, up to the first line that is not one.
pub fn read_rows(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(text.lines().map_while(|line| serde_json::from_str(line).ok()).collect())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn row(step: usize) -> StepRow {
        StepRow {
            step,
            epoch: step as f64 / 3.0,
            state: None,
            loss: 0.1 + 0.2,
            task_loss: 1.0 / 3.0,
            penalty: 1e-300,
            lambda: None,
            penalised_share: None,
            proximal: None,
            grad_norm: f64::NAN,
            learning_rate: 5e-5,
            tokens: 120,
            label_tokens: 45,
            tokens_per_second: 1234.5,
            elapsed_seconds: 0.7,
            peak_memory_bytes: 1 << 33,
        }
    }

    #[test]
    fn rows_read_back_exactly_and_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/metrics.jsonl");
        let mut metrics = Metrics::create(&path).unwrap();
        metrics.step(&row(1)).unwrap();
        metrics.eval(&EvalRow { step: 1, eval_loss: 2.5, eval_tokens: 9 }).unwrap();
        // Not dropped yet: what is read here has been flushed.
        let text = std::fs::read_to_string(&path).unwrap();
        let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let keys: Vec<&String> = rows[0].as_object().unwrap().keys().collect();
        let expected = [
            "step",
            "epoch",
            "loss",
            "task_loss",
            "penalty",
            "grad_norm",
            "learning_rate",
            "tokens",
            "label_tokens",
            "tokens_per_second",
            "elapsed_seconds",
            "peak_memory_bytes",
        ];
        assert_eq!(keys, expected);
        assert_eq!(rows[0]["loss"].as_f64(), Some(0.1 + 0.2));
        assert_eq!(rows[0]["penalty"].as_f64(), Some(1e-300));
        assert!(rows[0]["grad_norm"].is_null());
        assert_eq!(rows[1], serde_json::json!({"step": 1, "eval_loss": 2.5, "eval_tokens": 9}));
    }

    #[test]
    fn a_resumed_file_goes_on_where_the_checkpoint_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut metrics = Metrics::create(&path).unwrap();
        metrics.step(&row(1)).unwrap();
        let bytes = metrics.bytes();
        metrics.step(&row(2)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let mut resumed = Metrics::resume(&path, bytes).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole[..bytes as usize]);
        resumed.step(&row(2)).unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), resumed.bytes()), (whole.clone(), whole.len() as u64));
        std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        assert_eq!(Metrics::resume(&path, whole.len() as u64).unwrap().bytes(), bytes);
    }
}

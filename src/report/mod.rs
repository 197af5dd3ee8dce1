//! What a run tells: `metrics.jsonl` step by step, `run.json` and `report.html` at the end, and log lines and progress
//! on stderr meanwhile.

mod chart;
mod events;
mod html;
pub mod log;
mod metrics;
mod options;
mod progress;
mod run_record;
mod table;

pub use html::{Page, REPORT, RunFiles};
pub use metrics::{EvalRow, Metrics, ModuleRow, SkippedRow, State, StepRow};
pub use options::LoggingOptions;
pub use progress::{TrainProgress, download_bar, progress_bar};
pub use run_record::{RunRecord, Totals, UpdateNorm, hash_file};
pub use table::Table;

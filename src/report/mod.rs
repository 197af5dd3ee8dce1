//! What a run tells: `metrics.jsonl` step by step, `run.json` at the end, and progress on stderr meanwhile.

mod metrics;
mod progress;
mod run_record;
mod table;

pub use metrics::{EvalRow, Metrics, ModuleRow, SkippedRow, State, StepRow, peak_memory_bytes};
pub use progress::{TrainProgress, download_bar, progress_bar};
pub use run_record::{RunRecord, Totals, hash_file};
pub use table::Table;

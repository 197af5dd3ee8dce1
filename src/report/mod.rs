//! What a run leaves: `metrics.jsonl` step by step, `run.json` and `report.html` at the end. Also the progress of
//! training, shown from the rows of the metrics.

mod bars;
mod chart;
mod evaluated;
mod events;
mod html;
mod metrics;
mod options;
mod progress;
mod rate;
mod run_record;
mod shell;
mod trend;

pub use chart::escape;
pub use evaluated::{Change, Evaluated, INCOHERENT, SuiteEnds, SuiteRow, Value, says_nothing};
pub use html::{Page, REPORT, RunFiles};
pub use metrics::{EvalRow, Metrics, ModuleRow, SkippedRow, State, StepRow};
pub use options::LoggingOptions;
pub use progress::TrainProgress;
pub use rate::Rate;
pub use run_record::{Results, RunRecord, Totals, UpdateNorm, hash_file, hash_files};
pub use shell::{figures, page};
pub use trend::{LossEnds, Trend};

/// Four significant digits.
fn short(value: f64) -> String {
    let plain = value == 0.0 || (1e-3..1e5).contains(&value.abs()) || !value.is_finite();
    if plain { format!("{value:.4}") } else { format!("{value:.3e}") }
}

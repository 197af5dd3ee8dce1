//! Arguments of the commands around training: direction, data, train, compare.

use crate::method::DEFAULT_TOLERANCE;
use crate::model::DeviceKind;
use crate::train::Card;
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
#[command(after_help = "Examples:
  asft direction --aligned Qwen/Qwen2-7B-Instruct \\
      --unaligned Qwen/Qwen2-7B --out qwen2.direction.safetensors
  asft direction --aligned ./chat --unaligned ./base \\
      --target-modules all-linear --rank 64 --out d.safetensors")]
pub struct DirectionArgs {
    /// The safety-aligned model: a folder or a hub id
    #[arg(long, value_name = "ID|DIR")]
    pub aligned: String,
    /// Its base model, before alignment
    #[arg(long, value_name = "ID|DIR")]
    pub unaligned: String,
    /// The direction file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Overwrite the file if it exists
    #[arg(long)]
    pub overwrite: bool,
    /// Names separated by commas, "all-linear", or a regex for whole module paths
    #[arg(long, value_name = "NAMES", default_value = "q_proj,v_proj")]
    pub target_modules: String,
    /// Keep directions until what is left of C is at most this share of its largest eigenvalue; 0 keeps all above
    /// the rounding of f32
    #[arg(long, value_name = "SHARE", default_value_t = DEFAULT_TOLERANCE, conflicts_with = "rank", allow_negative_numbers = true)]
    pub tolerance: f64,
    /// Keep exactly this many directions of each module
    #[arg(long, value_name = "K")]
    pub rank: Option<usize>,
    /// Use the modules that both models share instead of refusing a pair that differs in names or shapes
    #[arg(long)]
    pub allow_missing: bool,
    /// Use quantised weights, although V is then mostly the error of quantisation
    #[arg(long)]
    pub allow_quantised: bool,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:
  asft data --config configs/tiny.toml
  asft data --config configs/tiny.toml --set data.train=mine.csv \\
      --set data.columns.instruction=question --show 10 --seed 1")]
pub struct DataArgs {
    /// The run's settings (TOML), as for asft train
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Override a setting, such as data.format=chat; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Number of training samples to show
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub show: usize,
    /// Choose the samples by this seed instead of taking the first
    #[arg(long)]
    pub seed: Option<u64>,
    /// Show where each token begins
    #[arg(long)]
    pub tokens: bool,
    /// Print JSON: the numbers, and the samples as ids, labels and text
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:
  asft train --config configs/tiny.toml
  asft train --config qwen2-7b.toml --dry-run
  asft train --config qwen2-7b.toml --dry-run --gpu h100
  asft train --config qwen2-7b.toml --set asft.lambda=0.1 \\
      --set output.dir=runs/lambda-0.1
  asft train --config qwen2-7b.toml --resume --set train.epochs=5 \\
      --allow-change train.epochs")]
pub struct TrainArgs {
    /// The run's settings (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Override a setting, such as asft.lambda=0.1; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Check the settings, print them as resolved, and stop
    #[arg(long)]
    pub check: bool,
    /// Read settings and data, estimate memory and time, and stop; no weights are loaded
    #[arg(long, conflicts_with = "check")]
    pub dry_run: bool,
    /// Estimate for this device instead of model.device
    #[arg(long, value_enum, requires = "dry_run")]
    pub device: Option<DeviceKind>,
    /// Predict a step's time on this NVIDIA card, such as h100 or rtx4090, by its data sheet; no GPU is needed
    #[arg(long, value_name = "CARD", value_parser = Card::named, requires = "dry_run")]
    pub gpu: Option<&'static Card>,
    /// Print the estimate as JSON
    #[arg(long, requires = "dry_run")]
    pub json: bool,
    /// Overwrite an earlier run in the output folder
    #[arg(long)]
    pub overwrite: bool,
    /// Continue from the newest usable checkpoint in the output folder; with none, start from the beginning
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Resume although this setting, or the content of the input that it names, has changed; may be repeated
    #[arg(long, value_name = "KEY", requires = "resume")]
    pub allow_change: Vec<String>,
}

#[derive(Args)]
#[command(after_help = "Examples:
  asft compare --config configs/sandbox/comparisons/defences.toml
  asft compare --config compare.toml --report --json
  asft compare --config compare.toml --report --html compare.html")]
pub struct CompareArgs {
    /// The comparison (TOML): base config, suite of evaluations, methods with their settings, seeds
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// List the runs and stop
    #[arg(long)]
    pub list: bool,
    /// Report the results so far, without training
    #[arg(long, conflicts_with = "list")]
    pub report: bool,
    /// Also write one HTML page: worst cases, trade-off, table, differences
    #[arg(long, value_name = "FILE", conflicts_with = "list")]
    pub html: Option<PathBuf>,
    /// Overwrite tables and figures in the folder that no comparison wrote, and the page of --html; results are always kept
    #[arg(long)]
    pub overwrite: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

//! Arguments of the commands that look at finished weights: project, inspect, landscape.

use super::{FormatArg, ModelArgs};
use crate::method::inspect::Order;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(Args)]
#[command(after_help = "Examples:
  asft project --adapter runs/tiny/adapter --direction runs/tiny/direction.safetensors --out projected
  asft project --adapter ./adapter --direction d.safetensors --out projected --layers 10 --json")]
pub struct ProjectArgs {
    /// PEFT LoRA adapter folder
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,
    /// Direction file of the adapter's base, from `asft direction`
    #[arg(long, value_name = "FILE")]
    pub direction: PathBuf,
    /// The adapter folder to write
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Project the modules whose cos(C dW, dW) is at most this
    #[arg(long, value_name = "COSINE", default_value_t = 0.5, conflicts_with = "layers")]
    pub threshold: f64,
    /// Project this many modules, those with the lowest cosines
    #[arg(long, value_name = "N")]
    pub layers: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
#[command(
    after_help = "Examples:
  asft inspect --adapter runs/tiny/adapter --direction runs/tiny/direction.safetensors
  asft inspect --adapter ./adapter --direction d.safetensors --sort signed --svg adapter.svg
  asft inspect --model ./tuned --base ./chat --direction d.safetensors --json",
    group = clap::ArgGroup::new("update").required(true).args(["adapter", "model"])
)]
pub struct InspectArgs {
    /// PEFT LoRA adapter folder
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// A whole model instead: dW is its difference from --base
    #[arg(long, value_name = "ID|DIR", requires = "base")]
    pub model: Option<String>,
    /// What --model was tuned from: the direction's aligned model
    #[arg(long, value_name = "ID|DIR", requires = "model")]
    pub base: Option<String>,
    /// Direction file, from `asft direction`
    #[arg(long, value_name = "FILE")]
    pub direction: PathBuf,
    /// The table's order
    #[arg(long, value_enum, default_value_t = Order::Layer)]
    pub sort: Order,
    /// Draw a heat map, layer by module
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum UnitArg {
    /// The norm of each module's weight
    Weight,
    /// The norm of each module's V: along V, -1 is the unaligned model
    Direction,
}

#[derive(Args)]
#[command(after_help = "Examples:
  asft landscape --model tests/tiny/aligned --direction runs/tiny/direction.safetensors --data tests/tiny/train.jsonl --out basin
  asft landscape --model ./chat --direction d.safetensors --suite suite.toml --points 11 --repeats 2 --grid 0 --out basin")]
pub struct LandscapeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Direction file of the model, from `asft direction`
    #[arg(long, value_name = "FILE")]
    pub direction: PathBuf,
    /// A TOML file of evaluations, as for `asft eval`: harmful score, accuracy, loss
    #[arg(long, value_name = "FILE", required_unless_present = "data")]
    pub suite: Option<PathBuf>,
    /// Samples whose mean loss is measured; may be repeated. The label stands in the pictures (the file's name without
    /// one)
    #[arg(long, value_name = "[LABEL=]FILE|ID")]
    pub data: Vec<String>,
    /// Layout of the records of --data
    #[arg(long, value_enum, default_value_t = FormatArg::Alpaca)]
    pub format: FormatArg,
    /// Only the first records of --data
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Longest sample of --data, in tokens; longer ones are cut (2048)
    #[arg(long, value_name = "N")]
    pub max_length: Option<usize>,
    /// Samples computed at once
    #[arg(long, default_value_t = 16)]
    pub batch_size: usize,
    /// What a step of 1 is long
    #[arg(long, value_enum, default_value_t = UnitArg::Weight)]
    pub unit: UnitArg,
    /// Largest step either way (0.5 norms of the weight, or 3 of the direction)
    #[arg(long, value_name = "ALPHA")]
    pub range: Option<f64>,
    /// Points of a curve, from -range to +range; odd, so that the model itself is one
    #[arg(long, value_name = "N", default_value_t = 21)]
    pub points: usize,
    /// Random directions of each kind; curves show their mean and extremes
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub repeats: u64,
    /// Points along each side of the grid (aligned by orthogonal); odd; 0 leaves the grid out
    #[arg(long, value_name = "N", default_value_t = 11)]
    pub grid: usize,
    /// Seed of the random directions
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// The folder to write: landscape.json, curves and grid as SVG and PNG
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

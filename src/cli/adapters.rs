//! Arguments of the commands that look at finished weights, or make others of them: merge, export, project, inspect.

use super::model::adapter_folder;
use crate::adapter::{FileFormat, ModelFile};
use crate::method::inspect::Order;
use crate::model::Dtype;
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
#[command(after_help = "Example:
  asft merge --model tests/tiny/aligned --adapter runs/tiny/adapter \\
      --out merged")]
pub struct MergeArgs {
    /// Model folder, GGUF file, or hub id with an optional @revision and, for a GGUF file, :FILE
    #[arg(long, value_name = "ID|DIR")]
    pub model: String,
    /// Folder or hub id of the tokenizer, if it is not the model's own; some GGUF files need one
    #[arg(long, value_name = "ID|DIR")]
    pub tokenizer: Option<String>,
    /// PEFT LoRA adapter folder, or the output folder of a run
    #[arg(long, value_name = "DIR", value_parser = adapter_folder)]
    pub adapter: PathBuf,
    /// Widen quantised weights, which then keep the error of their quantisation in several times the space
    #[arg(long)]
    pub dequantize: bool,
    /// The model folder to write
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Overwrite the model folder if it exists
    #[arg(long)]
    pub overwrite: bool,
    /// Store weights in this type instead of the model's own
    #[arg(long, value_enum)]
    pub dtype: Option<Dtype>,
}

#[derive(Args)]
#[command(after_help = "Examples:
  asft export --model ./model --adapter runs/tiny/adapter \\
      --format gguf --out lora.gguf
  asft export --model ./model --adapter runs/tiny/adapter \\
      --format gguf --merged --dtype q8_0 --out model.gguf")]
pub struct ExportArgs {
    /// The adapter's base, if it is not the one that the adapter names: model folder, or hub id with an optional
    /// @revision; for the adapter alone, only its config.json is read
    #[arg(long, value_name = "ID|DIR")]
    pub model: Option<String>,
    /// Folder or hub id of the tokenizer, if it is not the model's own
    #[arg(long, value_name = "ID|DIR", requires = "merged")]
    pub tokenizer: Option<String>,
    /// PEFT LoRA adapter folder, or the output folder of a run
    #[arg(long, value_name = "DIR", value_parser = adapter_folder)]
    pub adapter: PathBuf,
    /// What to write: a GGUF file, as llama.cpp loads it
    #[arg(long, value_enum)]
    pub format: FileFormat,
    /// Write the whole model, with the adapter merged into it
    #[arg(long)]
    pub merged: bool,
    /// Type of the merged model's matrices
    #[arg(long, value_enum, requires = "merged", default_value_t)]
    pub dtype: ModelFile,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Overwrite the file if it exists
    #[arg(long)]
    pub overwrite: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:
  asft project --adapter runs/tiny/adapter \\
      --direction runs/tiny/direction.safetensors --out projected
  asft project --adapter ./adapter --direction d.safetensors \\
      --out projected --layers 10 --json")]
pub struct ProjectArgs {
    /// PEFT LoRA adapter folder, or the output folder of a run
    #[arg(long, value_name = "DIR", value_parser = adapter_folder)]
    pub adapter: PathBuf,
    /// Direction file of the adapter's base, from `asft direction`
    #[arg(long, value_name = "FILE")]
    pub direction: PathBuf,
    /// The adapter folder to write
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Overwrite the adapter folder if it exists
    #[arg(long)]
    pub overwrite: bool,
    /// Project the modules whose cos(C dW, dW) is at most this
    #[arg(
        long,
        value_name = "COSINE",
        default_value_t = 0.5,
        conflicts_with = "layers",
        allow_negative_numbers = true
    )]
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
  asft inspect --adapter runs/tiny/adapter \\
      --direction runs/tiny/direction.safetensors
  asft inspect --adapter ./adapter --direction d.safetensors \\
      --sort signed --svg adapter.svg
  asft inspect --model ./tuned --base ./chat --direction d.safetensors --json",
    group = clap::ArgGroup::new("update").required(true).args(["adapter", "model"])
)]
pub struct InspectArgs {
    /// PEFT LoRA adapter folder, or the output folder of a run
    #[arg(long, value_name = "DIR", value_parser = adapter_folder)]
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
    /// Overwrite the file of --svg if it exists
    #[arg(long, requires = "svg")]
    pub overwrite: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

//! Arguments of the commands that run a model: eval, generate, landscape.

use super::model::adapter_folder;
use super::{BaseArgs, ModelArgs};
use crate::data::Format;
use crate::eval::{Match, Metric, Preset};
use crate::method::perturb::Unit;
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
#[command(
    after_help = "Examples:
  asft eval --model tests/tiny/aligned --data tests/tiny/train.jsonl
  asft eval --model ./model --data prompts.jsonl --preset harmful \\
      --samples answers.jsonl
  asft eval --model ./model --adapter runs/a/adapter \\
      --adapter runs/b/adapter --baseline --suite suite.toml
  asft eval --model ./model --data news.json --metric accuracy \\
      --match choice --labels World,Sports,Business,Sci/Tech",
    group = clap::ArgGroup::new("measured").required(true).args(["suite", "data"])
)]
pub struct EvalArgs {
    #[command(flatten)]
    pub base: BaseArgs,
    /// PEFT LoRA adapter folder, or the output folder of a run; may be repeated to compare several
    #[arg(long, value_name = "DIR", value_parser = adapter_folder)]
    pub adapter: Vec<PathBuf>,
    /// Measure the model without an adapter too
    #[arg(long, requires = "adapter")]
    pub baseline: bool,
    /// A TOML file of evaluations, instead of the options below
    #[arg(long, value_name = "FILE", conflicts_with_all = ["metric", "preset"])]
    pub suite: Option<PathBuf>,
    /// Samples: a JSON, JSONL, CSV, TSV or Parquet file, or a hub dataset as org/name or
    /// org/name@revision:path/to/file
    #[arg(long, value_name = "FILE|ID")]
    pub data: Option<String>,
    /// What to measure (loss, unless a preset says otherwise); may be repeated
    #[arg(long, value_enum)]
    pub metric: Vec<Metric>,
    /// Settings of a published evaluation
    #[arg(long, value_enum)]
    pub preset: Option<Preset>,
    /// Layout of the records, for the loss
    #[arg(long, value_enum, default_value_t = Format::Alpaca)]
    pub format: Format,
    /// Where the dataset has a field of the format, such as instruction=question; may be repeated
    #[arg(long, value_name = "FIELD=COLUMN")]
    pub column: Vec<String>,
    /// "tokenizer" for the tokenizer's own chat template, "asft-sst2", "asft-agnews", "asft-gsm8k" or "asft-alpaca" for
    /// the AsFT paper's prompts, or a Jinja file
    #[arg(long, value_name = "NAME|FILE")]
    pub template: Option<String>,
    /// Only the first records
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Longest sample of the loss, in tokens; longer ones are cut (2048)
    #[arg(long, value_name = "N")]
    pub max_length: Option<usize>,
    /// Longest answer, in tokens (256)
    #[arg(long, value_name = "N")]
    pub max_new_tokens: Option<usize>,
    /// Accuracy: when an answer is right (exact)
    #[arg(long, value_enum)]
    pub r#match: Option<Match>,
    /// The field that holds the reference (output, or label where there are labels)
    #[arg(long, value_name = "FIELD")]
    pub reference: Option<String>,
    /// References by number, and what "choice" chooses from
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// Match number: what stands before the answer's number ("The final answer is: ")
    #[arg(long, value_name = "TEXT")]
    pub marker: Option<String>,
    /// Refusal: a file with a phrase a line; an answer that holds one is a refusal
    #[arg(long, value_name = "FILE")]
    pub phrases: Option<String>,
    /// Text put before each prompt
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub prefix: String,
    /// Judge: the moderation model, a sequence-classification checkpoint such as beaver-dam-7b
    #[arg(long, value_name = "ID|DIR")]
    pub judge: Option<String>,
    /// Samples computed at once
    #[arg(long, default_value_t = 16)]
    pub batch_size: usize,
    /// Write every sample with the model's answer and what was made of it, as JSONL; not for the loss, which has no
    /// answers
    #[arg(long, value_name = "FILE")]
    pub samples: Option<PathBuf>,
    /// Replace the file of --samples that is there
    #[arg(long, requires = "samples")]
    pub overwrite: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
#[command(
    after_help = "Examples:
  asft generate --model tests/tiny/aligned --adapter runs/tiny/adapter \\
      --prompt 'What is the opposite of hot?'
  asft generate --model ./model --data prompts.jsonl --temperature 0.7 \\
      --top-p 0.9 > answers.jsonl",
    group = clap::ArgGroup::new("asked").required(true).args(["prompt", "data"])
)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// One user message; - reads it from standard input
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// A file of records with `prompt`, `instruction` (and `input`), `messages` or `conversations`; answers are printed
    /// as JSONL. A hub dataset too, as org/name or org/name@revision:path/to/file
    #[arg(long, value_name = "FILE|ID")]
    pub data: Option<String>,
    /// Where the file has one of these fields, such as prompt=question; may be repeated
    #[arg(long, value_name = "FIELD=COLUMN", requires = "data")]
    pub column: Vec<String>,
    /// Continue the prompt as it stands, without the chat template
    #[arg(long)]
    pub raw: bool,
    /// "tokenizer" for the tokenizer's own chat template, "asft-sst2", "asft-agnews", "asft-gsm8k" or "asft-alpaca" for
    /// the AsFT paper's prompts, or a Jinja file
    #[arg(long, value_name = "NAME|FILE", default_value = "tokenizer")]
    pub template: String,
    /// Longest answer, in tokens
    #[arg(long, default_value_t = 256)]
    pub max_new_tokens: usize,
    /// Prompts of the file that are answered at once
    #[arg(long, default_value_t = 16, requires = "data")]
    pub batch_size: usize,
    /// 0 takes the likeliest token; higher values vary more
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Sample from the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f64,
    /// Seed of the sampling
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Write the prompt's ids and logits to a safetensors file, to compare with another implementation
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    pub logits: Option<PathBuf>,
    /// Replace the file of --logits that is there
    #[arg(long, requires = "logits")]
    pub overwrite: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:
  asft landscape --model tests/tiny/aligned \\
      --direction runs/tiny/direction.safetensors \\
      --data tests/tiny/train.jsonl --out basin
  asft landscape --model ./chat --direction d.safetensors \\
      --suite suite.toml --points 11 --repeats 2 --grid 0 --out basin")]
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
    #[arg(long, value_enum, default_value_t = Format::Alpaca)]
    pub format: Format,
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
    #[arg(long, value_enum, default_value_t = Unit::Weight)]
    pub unit: Unit,
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
    /// Replace the landscape that is there
    #[arg(long)]
    pub overwrite: bool,
}

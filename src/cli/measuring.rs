//! Arguments of the commands that run a model: eval, generate, landscape.

use super::model::adapter_folder;
use super::{BaseArgs, ModelArgs};
use crate::data::Format;
use crate::eval::{JudgePreset, Match, Metric, Preset};
use crate::method::perturb::Unit;
use clap::Args;
use std::path::PathBuf;

/// Options of `asft eval` that say what one evaluation is, which a suite says itself.
const OF_ONE: [&str; 21] = [
    "metric",
    "preset",
    "format",
    "column",
    "template",
    "template_variable",
    "limit",
    "max_length",
    "max_new_tokens",
    "match",
    "reference",
    "labels",
    "marker",
    "phrases",
    "phrases_within",
    "system",
    "prefix",
    "suffix",
    "prefill",
    "judge",
    "judge_preset",
];

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
    group = clap::ArgGroup::new("measured").required(true).args(["suite", "data"]),
    group = clap::ArgGroup::new("written").multiple(true).args(["samples", "alpaca_eval"])
)]
pub struct EvalArgs {
    #[command(flatten)]
    pub base: BaseArgs,
    /// PEFT LoRA adapter folder, or the output folder of a run; may be repeated to compare several
    #[arg(long, value_name = "DIR", value_parser = adapter_folder)]
    pub adapter: Vec<PathBuf>,
    /// Also measure the model without an adapter
    #[arg(long, requires = "adapter")]
    pub baseline: bool,
    /// A TOML file of evaluations, instead of the options below
    #[arg(long, value_name = "FILE", conflicts_with_all = OF_ONE)]
    pub suite: Option<PathBuf>,
    /// Samples: a JSON, JSONL, CSV, TSV or Parquet file, or a hub dataset as org/name or
    /// org/name@revision:path/to/file
    #[arg(long, value_name = "FILE|ID")]
    pub data: Option<String>,
    /// What to measure (loss, unless a preset says otherwise); may be repeated
    #[arg(long, value_enum)]
    pub metric: Vec<Metric>,
    /// Use the settings of a published evaluation
    #[arg(long, value_enum)]
    pub preset: Option<Preset>,
    /// Format of the records (for the loss)
    #[arg(long, value_enum, default_value_t = Format::Alpaca)]
    pub format: Format,
    /// Read a field of the format from another column, such as instruction=question; may be repeated
    #[arg(long, value_name = "FIELD=COLUMN")]
    pub column: Vec<String>,
    /// "tokenizer" for the tokenizer's own chat template, "asft-sst2", "asft-agnews", "asft-gsm8k" or "asft-alpaca" for
    /// the AsFT paper's prompts, or a Jinja file
    #[arg(long, value_name = "NAME|FILE")]
    pub template: Option<String>,
    /// A value for one of the template's own variables, such as enable_thinking=false; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub template_variable: Vec<String>,
    /// Use at most this many records, from the start of the file
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// For the loss: cut samples to this many tokens (2048)
    #[arg(long, value_name = "N")]
    pub max_length: Option<usize>,
    /// Most tokens that an answer may have (256)
    #[arg(long, value_name = "N")]
    pub max_new_tokens: Option<usize>,
    /// For accuracy: how an answer is compared with its reference (exact)
    #[arg(long, value_enum)]
    pub r#match: Option<Match>,
    /// The field that holds the reference (output, or label where there are labels)
    #[arg(long, value_name = "FIELD")]
    pub reference: Option<String>,
    /// The names of numbered references; also the answers that "choice" chooses from
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// For match number: the text before the number in an answer ("The final answer is: ")
    #[arg(long, value_name = "TEXT")]
    pub marker: Option<String>,
    /// For refusals: a file of phrases, one per line; an answer that contains one counts as a refusal
    #[arg(long, value_name = "FILE")]
    pub phrases: Option<String>,
    /// For refusals: count only phrases that begin within so many characters of an answer
    #[arg(long, value_name = "N")]
    pub phrases_within: Option<usize>,
    /// A system message, in place of the records' own
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub system: String,
    /// Text to put before each prompt
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub prefix: String,
    /// Text to put after each prompt
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub suffix: String,
    /// What each answer begins with, such as "Sure, "
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub prefill: String,
    /// For the judge: a moderation model, as a sequence-classification checkpoint such as beaver-dam-7b or, with
    /// --judge-preset, a language model
    #[arg(long, value_name = "ID|DIR")]
    pub judge: Option<String>,
    /// For the judge: how it is asked and understood (a suite has more settings)
    #[arg(long, value_enum)]
    pub judge_preset: Option<JudgePreset>,
    /// Samples per batch
    #[arg(long, default_value_t = 16)]
    pub batch_size: usize,
    /// Write each sample with the model's answer and how it was scored, as JSONL (not for the loss, which has no
    /// answers)
    #[arg(long, value_name = "FILE")]
    pub samples: Option<PathBuf>,
    /// Write the answers as AlpacaEval's model outputs: a JSON list of instruction, output, generator and dataset (of one model
    /// and one evaluation)
    #[arg(long, value_name = "FILE")]
    pub alpaca_eval: Option<PathBuf>,
    /// What the answers of --alpaca-eval say that they are from (the names of model and adapter)
    #[arg(long, value_name = "NAME", requires = "alpaca_eval")]
    pub generator: Option<String>,
    /// Overwrite the files of --samples and --alpaca-eval if they exist
    #[arg(long, requires = "written")]
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
    group = clap::ArgGroup::new("asked").required(true).args(["prompt", "data"]),
    group = clap::ArgGroup::new("written").multiple(true).args(["logits", "alpaca_eval"])
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
    /// Read one of these fields from another column, such as prompt=question; may be repeated
    #[arg(long, value_name = "FIELD=COLUMN", requires = "data")]
    pub column: Vec<String>,
    /// Continue the prompt as it stands, without the chat template
    #[arg(long)]
    pub raw: bool,
    /// "tokenizer" for the tokenizer's own chat template, "asft-sst2", "asft-agnews", "asft-gsm8k" or "asft-alpaca" for
    /// the AsFT paper's prompts, or a Jinja file
    #[arg(long, value_name = "NAME|FILE", default_value = "tokenizer")]
    pub template: String,
    /// A value for one of the template's own variables, such as enable_thinking=false; may be repeated
    #[arg(long, value_name = "NAME=VALUE", conflicts_with = "raw")]
    pub template_variable: Vec<String>,
    /// Most tokens that an answer may have
    #[arg(long, default_value_t = 256)]
    pub max_new_tokens: usize,
    /// Prompts of the file per batch
    #[arg(long, default_value_t = 16, requires = "data")]
    pub batch_size: usize,
    /// Sampling temperature: 0 takes the likeliest token, higher values vary more
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Nucleus sampling: sample from the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f64,
    /// Seed of the sampling
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Write the prompt's ids and logits to a safetensors file, to compare with another implementation
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    pub logits: Option<PathBuf>,
    /// Write the answers as AlpacaEval's model outputs: a JSON list of instruction, output, generator and dataset
    #[arg(long, value_name = "FILE", requires = "data")]
    pub alpaca_eval: Option<PathBuf>,
    /// What the answers of --alpaca-eval say that they are from (the names of model and adapter)
    #[arg(long, value_name = "NAME", requires = "alpaca_eval")]
    pub generator: Option<String>,
    /// Overwrite the files of --logits and --alpaca-eval if they exist
    #[arg(long, requires = "written")]
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
    /// A second direction file of the model, whose unaligned model is a copy tuned on harmful data: that copy's direction
    /// becomes a curve and the grid's vertical axis
    #[arg(long, value_name = "FILE")]
    pub harm: Option<PathBuf>,
    /// A TOML file of evaluations, as for `asft eval`: harmful score, accuracy, loss
    #[arg(long, value_name = "FILE", required_unless_present = "data")]
    pub suite: Option<PathBuf>,
    /// Samples whose mean loss is measured; may be repeated. LABEL names them in the pictures (default: the
    /// file's name)
    #[arg(long, value_name = "[LABEL=]FILE|ID")]
    pub data: Vec<String>,
    /// Format of the records of --data
    #[arg(long, value_enum, default_value_t = Format::Alpaca)]
    pub format: Format,
    /// Use at most this many records of each --data file
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Cut the samples of --data to this many tokens (2048)
    #[arg(long, value_name = "N")]
    pub max_length: Option<usize>,
    /// Samples per batch
    #[arg(long, default_value_t = 16)]
    pub batch_size: usize,
    /// The unit of --range
    #[arg(long, value_enum, default_value_t = Unit::Weight)]
    pub unit: Unit,
    /// Largest step in either direction (0.5 norms of the weight, or 3 of the direction)
    #[arg(long, value_name = "ALPHA")]
    pub range: Option<f64>,
    /// Points per curve, from -range to +range; odd, so that the model itself is one of them
    #[arg(long, value_name = "N", default_value_t = 21)]
    pub points: usize,
    /// Number of random directions of each kind; curves show their mean and extremes
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub repeats: u64,
    /// Points along each side of the grid (aligned by orthogonal, or by --harm); odd; 0 leaves the grid out
    #[arg(long, value_name = "N", default_value_t = 11)]
    pub grid: usize,
    /// Seed of the random directions
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// The folder to write: landscape.json, curves and grid as SVG and PNG
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Overwrite the landscape if it exists
    #[arg(long)]
    pub overwrite: bool,
}

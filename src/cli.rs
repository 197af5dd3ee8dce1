//! Command-line arguments as typed. What they resolve to is the commands' business.

mod meta;
mod tools;

pub use meta::{CompletionsArgs, InitArgs, ManArgs, ReportArgs};
pub use tools::{InspectArgs, LandscapeArgs, ProjectArgs, UnitArg};

use crate::console::log::{LogFormat, Verbosity};
use crate::eval::{Match, Metric, Preset};
use crate::method::DEFAULT_TOLERANCE;
use crate::version::VERSION;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Fine-tune language models without losing their safety (AsFT: anchoring safety, arXiv 2506.08473).
#[derive(Parser)]
#[command(name = "asft", version = VERSION.as_str(), arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub output: LogArgs,
}

/// What is told on stderr, for every command.
#[derive(Args)]
#[command(next_help_heading = "Messages")]
pub struct LogArgs {
    /// Tell warnings and errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Tell each step, and what is being done
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Text, or a JSON object a line with time, level, message and fields
    #[arg(long, value_enum, value_name = "FORMAT", global = true, default_value_t = LogFormatArg::Text)]
    pub log_format: LogFormatArg,
}

impl LogArgs {
    pub fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (false, true) => Verbosity::Verbose,
            (false, false) => Verbosity::Normal,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub enum LogFormatArg {
    Text,
    Json,
}

impl From<LogFormatArg> for LogFormat {
    fn from(format: LogFormatArg) -> Self {
        match format {
            LogFormatArg::Text => Self::Text,
            LogFormatArg::Json => Self::Json,
        }
    }
}

#[derive(Subcommand)]
pub enum Command {
    /// Compute the alignment directions V = W_aligned - W_unaligned of a model pair, layer by layer
    Direction(DirectionArgs),
    /// Show what a config trains on: counts, lengths, and samples with their label tokens marked
    Data(DataArgs),
    /// Fine-tune with the AsFT penalty and export a PEFT adapter
    Train(TrainArgs),
    /// Measure a model, with or without an adapter, on a dataset
    Eval(EvalArgs),
    /// Answer prompts
    Generate(GenerateArgs),
    /// Fold an adapter into its base model
    Merge(MergeArgs),
    /// Train and measure several defences side by side: one table and one figure
    Compare(CompareArgs),
    /// Project an adapter onto the alignment direction where it leaves it (Safe LoRA)
    Project(ProjectArgs),
    /// Show how much of an adapter or a tuned model is aligned, orthogonal, or against the alignment direction
    Inspect(InspectArgs),
    /// Draw the safety basin: harmful score, accuracy or loss as the model is moved along the alignment direction and across it
    Landscape(LandscapeArgs),
    /// Write report.html for a run: charts, settings and versions on one page
    Report(ReportArgs),
    /// Write a commented config for a model
    Init(InitArgs),
    /// Print the JSON schema of the config
    Schema,
    /// Print a script that completes commands and options in a shell
    Completions(CompletionsArgs),
    /// Write a man page for each command
    Man(ManArgs),
}

/// A model and how to compute with it.
#[derive(Args)]
pub struct BaseArgs {
    /// Model folder, or hub id with an optional @revision
    #[arg(long, value_name = "ID|DIR")]
    pub model: String,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto)]
    pub device: DeviceArg,
    /// Type of weights and activations
    #[arg(long, value_enum, default_value_t = DtypeArg::F32)]
    pub dtype: DtypeArg,
}

/// A model and, perhaps, an adapter on it.
#[derive(Args)]
pub struct ModelArgs {
    #[command(flatten)]
    pub base: BaseArgs,
    /// PEFT LoRA adapter folder
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum DeviceArg {
    Auto,
    Cpu,
    Cuda,
    Metal,
}

#[derive(Args)]
#[command(after_help = "Examples:
  asft direction --aligned Qwen/Qwen2-7B-Instruct --unaligned Qwen/Qwen2-7B --out qwen2.direction.safetensors
  asft direction --aligned ./chat --unaligned ./base --target-modules all-linear --rank 64 --out d.safetensors")]
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
    /// Names separated by commas, "all-linear", or a regex for whole module paths
    #[arg(long, value_name = "NAMES", default_value = "q_proj,v_proj")]
    pub target_modules: String,
    /// Keep directions until what is left of C is at most this share of its largest eigenvalue; 0 keeps all that f32 can
    /// tell from nothing
    #[arg(long, value_name = "SHARE", default_value_t = DEFAULT_TOLERANCE, conflicts_with = "rank")]
    pub tolerance: f64,
    /// Keep just this many directions of each module
    #[arg(long, value_name = "K")]
    pub rank: Option<usize>,
    /// Use what both models have instead of refusing a pair that differs in names or shapes
    #[arg(long)]
    pub allow_missing: bool,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:
  asft data --config configs/tiny.toml
  asft data --config configs/tiny.toml --set data.train=mine.csv --set data.columns.instruction=question --show 10 --seed 1")]
pub struct DataArgs {
    /// The run's settings (TOML), as for asft train
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Override a setting, such as data.format=chat; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Training samples to show
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
  asft train --config qwen2-7b.toml --set asft.lambda=0.1 --set output.dir=runs/lambda-0.1
  asft train --config qwen2-7b.toml --resume --set train.epochs=5 --allow-change train.epochs")]
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
    /// Print the estimate as JSON
    #[arg(long, requires = "dry_run")]
    pub json: bool,
    /// Replace an earlier run in the output folder
    #[arg(long)]
    pub overwrite: bool,
    /// Go on from the newest usable checkpoint in the output folder; without any, start from the beginning
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Resume although this setting, or the content of the input that it names, has changed; may be repeated
    #[arg(long, value_name = "KEY", requires = "resume")]
    pub allow_change: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum FormatArg {
    Alpaca,
    Chat,
    Sharegpt,
    PromptCompletion,
    Text,
    Tokenized,
}

#[derive(Args)]
#[command(after_help = "Examples:
  asft eval --model tests/tiny/aligned --data tests/tiny/train.jsonl
  asft eval --model ./model --data prompts.jsonl --preset harmful --samples answers.jsonl
  asft eval --model ./model --adapter runs/a/adapter --adapter runs/b/adapter --baseline --suite suite.toml
  asft eval --model ./model --data news.json --metric accuracy --match choice --labels World,Sports,Business,Sci/Tech")]
pub struct EvalArgs {
    #[command(flatten)]
    pub base: BaseArgs,
    /// PEFT LoRA adapter folder; may be repeated to compare several
    #[arg(long, value_name = "DIR")]
    pub adapter: Vec<PathBuf>,
    /// Measure the model without an adapter too
    #[arg(long, requires = "adapter")]
    pub baseline: bool,
    /// A TOML file of evaluations, instead of the options below
    #[arg(long, value_name = "FILE", required_unless_present = "data", conflicts_with_all = ["data", "metric", "preset"])]
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
    #[arg(long, value_enum, default_value_t = FormatArg::Alpaca)]
    pub format: FormatArg,
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
    /// Write every sample with the model's answer and what was made of it, as JSONL
    #[arg(long, value_name = "FILE")]
    pub samples: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:
  asft generate --model tests/tiny/aligned --adapter runs/tiny/adapter --prompt 'What is the opposite of hot?'
  asft generate --model ./model --data prompts.jsonl --temperature 0.7 --top-p 0.9 > answers.jsonl")]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// One user message; - reads it from standard input
    #[arg(long, value_name = "TEXT", required_unless_present = "data", conflicts_with = "data")]
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
    #[arg(long, default_value_t = 0.0)]
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
}

#[derive(Clone, Copy, ValueEnum)]
pub enum DtypeArg {
    F32,
    F16,
    Bf16,
}

#[derive(Args)]
#[command(after_help = "Example:
  asft merge --model tests/tiny/aligned --adapter runs/tiny/adapter --out merged")]
pub struct MergeArgs {
    /// Model folder, or hub id with an optional @revision
    #[arg(long, value_name = "ID|DIR")]
    pub model: String,
    /// PEFT LoRA adapter folder
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,
    /// The model folder to write
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Store weights in this type instead of the model's own
    #[arg(long, value_enum)]
    pub dtype: Option<DtypeArg>,
}

#[derive(Args)]
#[command(after_help = "Examples:
  asft compare --config configs/sandbox/comparisons/defences.toml
  asft compare --config compare.toml --report --json")]
pub struct CompareArgs {
    /// The comparison (TOML): base config, suite of evaluations, methods with their settings, seeds
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// List the runs and stop
    #[arg(long)]
    pub list: bool,
    /// Show the results that are there; train nothing
    #[arg(long, conflicts_with = "list")]
    pub report: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

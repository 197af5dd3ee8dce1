//! Command-line arguments as typed. The commands resolve them.

mod adapters;
mod measuring;
mod meta;
mod model;
mod serving;
mod training;

pub use adapters::{ExportArgs, InspectArgs, MergeArgs, ProjectArgs};
pub use measuring::{EvalArgs, GenerateArgs, LandscapeArgs};
pub use meta::{CompletionsArgs, DoctorArgs, InitArgs, ManArgs, ReportArgs, SchemaArgs, SchemaOf};
pub use model::{BaseArgs, ModelArgs};
pub use serving::{DEFAULT_CONTEXT, LimitArgs, ServeArgs};
pub use training::{CompareArgs, DataArgs, DirectionArgs, TrainArgs};

use crate::console::log::LogFormat;
use crate::version::VERSION;
use clap::error::{ContextKind, ContextValue};
use clap::{Args, Error, Parser, Subcommand};

/// Fine-tune language models without losing their safety (AsFT: anchoring safety, arXiv 2506.08473).
#[derive(Parser)]
#[command(name = "asft", version = VERSION.as_str(), arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub output: LogArgs,
}

/// What other programs call these commands.
const ELSEWHERE: [(&str, &[&str]); 10] = [
    ("train", &["finetune", "fine-tune", "tune", "fit", "run", "sft", "lora"]),
    ("eval", &["evaluate", "test", "score", "benchmark", "bench"]),
    ("generate", &["chat", "infer", "inference", "predict", "complete", "answer"]),
    ("serve", &["server", "api", "host", "deploy"]),
    ("merge", &["fuse", "fold", "merge-and-unload"]),
    ("export", &["convert", "save"]),
    ("init", &["new", "create", "config"]),
    ("data", &["dataset", "preprocess", "tokenize", "show"]),
    ("report", &["plot", "html"]),
    ("doctor", &["check", "diagnose", "selftest", "self-test", "verify"]),
];

impl Cli {
    /// The command line, or an exit with what is wrong with it. A command of another name is told its name here.
    pub fn from_command_line() -> Self {
        Self::try_parse().unwrap_or_else(|error| with_synonym(error).exit())
    }
}

fn with_synonym(mut error: Error) -> Error {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else { return error };
    let meant = ELSEWHERE.iter().find(|(_, names)| names.contains(&word.to_lowercase().as_str()));
    if let Some((name, _)) = meant {
        error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(vec![name.to_string()]));
    }
    error
}

/// What is told on stderr, for every command.
#[derive(Args)]
#[command(next_help_heading = "Messages")]
pub struct LogArgs {
    /// Print only warnings and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Also print each step and what is being done
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Text, or one JSON object per line with time, level, message and fields
    #[arg(long, value_enum, value_name = "FORMAT", global = true, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
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
    Eval(Box<EvalArgs>),
    /// Answer prompts
    Generate(GenerateArgs),
    /// Serve a model and its adapters over HTTP, as OpenAI's API
    Serve(ServeArgs),
    /// Fold an adapter into its base model
    Merge(MergeArgs),
    /// Write an adapter, or the model merged with it, as llama.cpp loads it
    Export(ExportArgs),
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
    /// Check that a device computes what training needs, and measure how fast it is
    Doctor(DoctorArgs),
    /// Print the JSON schema of a run's config, of a suite of evaluations, or of a comparison
    Schema(SchemaArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Write a man page for each command
    Man(ManArgs),
}

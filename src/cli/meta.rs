//! Arguments of the commands around a run: its report, a first config, the check of a device, what a shell wants to know.

use crate::model::{DeviceKind, Dtype};
use clap::{Args, ValueEnum};
use clap_complete::Shell;
use std::path::PathBuf;

#[derive(Args)]
#[command(after_help = "Example:
  asft report runs/tiny")]
pub struct ReportArgs {
    /// A run's output folder, finished or not
    #[arg(value_name = "RUN_DIR")]
    pub run: PathBuf,
    /// Where to write the page instead of RUN_DIR/report.html
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Overwrite the file of --out if it exists; RUN_DIR/report.html always is overwritten
    #[arg(long, requires = "out")]
    pub overwrite: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:
  asft init Qwen/Qwen2-7B-Instruct
  asft init --sandbox try-asft
  asft init ./my-model --unaligned ./its-base --data train.jsonl \\
      --out my-model.toml")]
pub struct InitArgs {
    /// The model to fine-tune: a folder, a GGUF file, or a hub id with an optional @revision
    #[arg(value_name = "MODEL", required_unless_present = "sandbox")]
    pub model: Option<String>,
    /// Write a first run instead, with its toy models, data and config, to a new folder; start the commands of docs/sandbox.md there
    #[arg(
        long,
        value_name = "DIR",
        conflicts_with_all = ["model", "tokenizer", "unaligned", "direction", "data", "out"]
    )]
    pub sandbox: Option<PathBuf>,
    /// Folder or hub id of the tokenizer, if it is not the model's own; some GGUF files need one
    #[arg(long, value_name = "ID|DIR")]
    pub tokenizer: Option<String>,
    /// The base model that it was tuned from: a folder or a hub id (default: guessed from the model's name)
    #[arg(long, value_name = "MODEL")]
    pub unaligned: Option<String>,
    /// A direction file (from `asft direction`) instead of the base model
    #[arg(long, value_name = "FILE", conflicts_with = "unaligned")]
    pub direction: Option<PathBuf>,
    /// Training samples: a file or a hub dataset; the format is recognised from a file's records
    #[arg(long, value_name = "FILE")]
    pub data: Option<String>,
    /// The config to write, or - to print it (default: the model's name with .toml)
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Overwrite the config, or the sandbox's files, if they exist
    #[arg(long)]
    pub overwrite: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:
  asft doctor
  asft doctor --device cuda --dtype bf16
  asft doctor --json > doctor.json")]
pub struct DoctorArgs {
    /// The device to check
    #[arg(long, value_enum, default_value_t = DeviceKind::Auto)]
    pub device: DeviceKind,
    /// Type of weights and activations to check; by default f32 on the CPU, bf16 elsewhere
    #[arg(long, value_enum)]
    pub dtype: Option<Dtype>,
    /// Print one JSON object instead of the table (docs/gpu.md says what it holds)
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:
  asft schema > asft.schema.json
  asft schema suite > asft-suite.schema.json
  asft schema compare > asft-compare.schema.json")]
pub struct SchemaArgs {
    /// The kind of file to describe
    #[arg(value_name = "KIND", value_enum, default_value_t = SchemaOf::Run)]
    pub of: SchemaOf,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum SchemaOf {
    /// The settings of a run, as for asft train --config
    Run,
    /// Evaluations, as for asft eval --suite
    Suite,
    /// A comparison, as for asft compare --config
    Compare,
}

#[derive(Args)]
#[command(after_help = "Examples:
  asft completions bash > ~/.local/share/bash-completion/completions/asft
  asft completions zsh > ~/.zfunc/_asft
  asft completions fish > ~/.config/fish/completions/asft.fish")]
pub struct CompletionsArgs {
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

#[derive(Args)]
#[command(after_help = "Example:
  asft man ~/.local/share/man/man1")]
pub struct ManArgs {
    /// Folder for asft.1, asft-train.1 and so on; - prints them
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Overwrite the pages if they exist
    #[arg(long)]
    pub overwrite: bool,
}

//! Arguments of `asft serve`.

use super::BaseArgs;
use super::model::adapter_folder;
use clap::Args;
use std::path::PathBuf;

/// Tokens of `--context`: the cache of a model with a long context would not fit most machines.
pub const DEFAULT_CONTEXT: usize = 4096;

#[derive(Args)]
#[command(after_help = "Examples:
  asft serve --model tests/tiny/aligned --adapter tuned=runs/tiny/adapter
  asft serve --model ./model --dtype bf16 --context 8192 \\
      --host 0.0.0.0 --api-key-file key.txt")]
pub struct ServeArgs {
    #[command(flatten)]
    pub base: BaseArgs,
    /// PEFT LoRA adapter folder, or the output folder of a run, and the name by which requests choose it; may be
    /// repeated
    #[arg(long, value_name = "NAME=DIR", value_parser = named_adapter)]
    pub adapter: Vec<(String, PathBuf)>,
    /// Address to listen on; anything but the machine's own (127.0.0.1) can be reached by others
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// A file with the key that every request must bear
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// "tokenizer" for the tokenizer's own chat template, "asft-sst2", "asft-agnews", "asft-gsm8k" or "asft-alpaca" for
    /// the AsFT paper's prompts, or a Jinja file
    #[arg(long, value_name = "NAME|FILE", default_value = "tokenizer")]
    pub template: String,
    /// A value for one of the template's own variables, such as enable_thinking=false; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub template_variable: Vec<String>,
    #[command(flatten)]
    pub limits: LimitArgs,
}

#[derive(Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    #[arg(long, value_name = "N", help = context_help())]
    pub context: Option<usize>,
    /// Sequences that are continued at once; the cache has room for the context of each
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub batch_size: usize,
    /// Sequences that may wait; a request beyond them is refused with 503
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub queue: usize,
    /// Most bytes of a request
    #[arg(long, value_name = "N", default_value_t = 4 << 20)]
    pub max_body_bytes: usize,
    /// Most time that a request may take
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub timeout: u64,
    /// Time that running answers have to finish after SIGINT or SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub grace: u64,
}

fn context_help() -> String {
    format!(
        "Most tokens of a prompt and its answer together ({DEFAULT_CONTEXT}, or the model's context if that is shorter)"
    )
}

fn named_adapter(text: &str) -> Result<(String, PathBuf), String> {
    let (name, dir) =
        text.split_once('=').filter(|(name, dir)| !name.is_empty() && !dir.is_empty()).ok_or_else(|| {
            "expected NAME=DIR, such as tuned=runs/a/adapter; requests choose the adapter by the name".to_string()
        })?;
    let Ok(dir) = adapter_folder(dir);
    Ok((name.to_string(), dir))
}

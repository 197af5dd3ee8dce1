//! `asft export`

use crate::adapter::{self, Adapter, BaseIdentity, FileFormat, Parts};
use crate::checkpoint::Checkpoint;
use crate::cli::ExportArgs;
use crate::console::{log, progress_bar};
use crate::hub;
use crate::model::ModelSpec;
use crate::outputs::Outputs;
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use candle_core::Device;
use serde_json::json;

pub fn run(args: ExportArgs) -> Result<()> {
    let model = match &args.model {
        Some(model) => model.clone(),
        None => base(&adapter::load(&args.adapter, &Device::Cpu)?)
            .ok_or_else(|| invalid!("the adapter does not name its base; name it with --model"))?,
    };
    let named_by = if args.model.is_some() { "--model" } else { "the adapter's base" };
    let read = Outputs::new(args.overwrite).reads(named_by, [&model]).reads("--adapter", [&args.adapter]);
    read.reads("--tokenizer", &args.tokenizer).file("--out", [&args.out]).check()?;
    let modules = match args.format {
        FileFormat::Gguf if args.merged => merged(&args, &model)?,
        FileFormat::Gguf => {
            let spec = ModelSpec::load(&hub::resolve_without_weights(&model, false)?.place)?;
            let adapter = adapter::load_for(&args.adapter, &spec, &Device::Cpu)?;
            adapter::save_gguf(&adapter, &spec, &args.out)?;
            adapter.modules.len()
        }
    };
    let text = format!("wrote {}, with {modules} modules adapted", args.out.display());
    log::info(&text, json!({"modules": modules, "out": args.out}));
    Ok(())
}

/// What the adapter says it was trained on.
fn base(adapter: &Adapter) -> Option<String> {
    Some(hub::at_revision(adapter.base.as_ref()?, adapter.revision.as_deref()))
}

/// Writes the merged model; returns how many modules the adapter has.
fn merged(args: &ExportArgs, model: &str) -> Result<usize> {
    let base = hub::resolve(model, false)?;
    let base = base.with_tokenizer(args.tokenizer.as_deref(), false).context("--tokenizer")?;
    let (spec, checkpoint) = (ModelSpec::load(&base.place)?, Checkpoint::open(&base.place)?);
    let adapter = adapter::load_for(&args.adapter, &spec, &Device::Cpu)?;
    BaseIdentity::check(&args.adapter, &adapter, &checkpoint)?;
    ensure_valid!(
        !checkpoint.is_quantised(),
        "the weights of {model} are quantised; name the model that they were made from"
    );
    let tokenizer = base.load_tokenizer()?;
    let progress = progress_bar(0, "writing");
    let parts = Parts { spec: &spec, checkpoint: &checkpoint, adapter: &adapter, tokenizer: &tokenizer };
    adapter::save_merged_gguf(&parts, args.dtype, &args.out, &progress)?;
    progress.finish_and_clear();
    Ok(adapter.modules.len())
}

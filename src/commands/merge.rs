//! `asft merge`

use crate::adapter::{self, BaseIdentity};
use crate::checkpoint::{Checkpoint, Stored, companions_of_gguf, is_gguf, replace};
use crate::cli::MergeArgs;
use crate::console::{log, progress_bar};
use crate::ensure_valid;
use crate::hub;
use crate::model::ModelSpec;
use crate::names::EMBEDDING;
use crate::outputs::Outputs;
use crate::tokenizer::unpack;
use anyhow::{Context, Result};
use candle_core::{DType, Device};
use safetensors::Dtype;
use serde_json::{Value, json};

pub fn run(args: MergeArgs) -> Result<()> {
    let read = Outputs::new(args.overwrite).reads("--model", [&args.model]).reads("--adapter", [&args.adapter]);
    read.reads("--tokenizer", &args.tokenizer).folder("--out", &args.out, "config.json").check()?;
    let base = hub::resolve(&args.model, false)?;
    let base = base.with_tokenizer(args.tokenizer.as_deref(), false).context("--tokenizer")?;
    let spec = ModelSpec::load(&base.place)?;
    let checkpoint = Checkpoint::open(&base.place)?;
    let adapter = adapter::load_for(&args.adapter, &spec, &Device::Cpu)?;
    BaseIdentity::check(&args.adapter, &adapter, &checkpoint)?;
    if checkpoint.is_quantised() {
        check_quantised(&args)?;
    }
    let mut dtype = args.dtype.map(DType::from);
    if checkpoint.is_quantised() && dtype.is_none() {
        dtype = Some(float_type(&checkpoint));
    }
    // What the merged folder has besides weights, if the model has no folder.
    let companions = if is_gguf(&base.place) {
        let of_all = dtype.unwrap_or_else(|| float_type(&checkpoint));
        dtype = Some(of_all);
        base.load_tokenizer()?;
        let folder = companions_of_gguf(&base.place, base.tokenizer.as_deref(), of_all)?;
        if is_gguf(base.tokenizer_place()) {
            unpack(base.tokenizer_place(), folder.path())?;
        }
        Some(folder)
    } else {
        None
    };
    let source = companions.as_ref().map_or(base.place.as_path(), |folder| folder.path());
    let progress = progress_bar(0, "merging");
    replace(&args.out, |out| adapter::merge(source, &checkpoint, &adapter, out, dtype, &progress))?;
    progress.finish_and_clear();
    let text = format!("merged {} modules into {}", adapter.modules.len(), args.out.display());
    log::info(&text, json!({"modules": adapter.modules.len(), "out": args.out}));
    Ok(())
}

fn check_quantised(args: &MergeArgs) -> Result<()> {
    ensure_valid!(
        args.dequantize,
        "the weights of {} are quantised: merge into the model that they were made from (--model), which loses nothing, \
         or into these, widened (--dequantize)",
        args.model
    );
    let text = "the merged model keeps the error of the quantised weights, in several times their space; merging into the \
                model that they were made from has neither";
    log::warn(text, Value::Null);
    Ok(())
}

/// The type of a model folder with these weights: the embedding's, or bf16 if that is quantised.
fn float_type(checkpoint: &Checkpoint) -> DType {
    match checkpoint.info(EMBEDDING).map(|info| info.stored) {
        Some(Stored::Plain(Dtype::F32)) => DType::F32,
        Some(Stored::Plain(Dtype::F16)) => DType::F16,
        _ => DType::BF16,
    }
}

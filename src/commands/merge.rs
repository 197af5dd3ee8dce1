//! `asft merge`

use crate::adapter::{self, BaseIdentity};
use crate::checkpoint::{Checkpoint, replace};
use crate::cli::MergeArgs;
use crate::console::{log, progress_bar};
use crate::hub;
use crate::model::ModelSpec;
use crate::outputs::Outputs;
use anyhow::Result;
use candle_core::{DType, Device};
use serde_json::json;

pub fn run(args: MergeArgs) -> Result<()> {
    let read = Outputs::new(args.overwrite).reads("--model", [&args.model]).reads("--adapter", [&args.adapter]);
    read.folder("--out", &args.out, "config.json").check()?;
    let base = hub::resolve(&args.model, false)?;
    let spec = ModelSpec::load(&base.dir)?;
    let checkpoint = Checkpoint::open(&base.dir)?;
    let adapter = adapter::load(&args.adapter, &Device::Cpu)?;
    adapter.check_fits(&spec)?;
    BaseIdentity::check(&args.adapter, &adapter, &checkpoint)?;
    let dtype = args.dtype.map(DType::from);
    let progress = progress_bar(0, "merging");
    replace(&args.out, |out| adapter::merge(&base.dir, &checkpoint, &adapter, out, dtype, &progress))?;
    progress.finish_and_clear();
    let text = format!("merged {} modules into {}", adapter.modules.len(), args.out.display());
    log::info(&text, json!({"modules": adapter.modules.len(), "out": args.out}));
    Ok(())
}

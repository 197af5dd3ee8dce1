//! `asft export`

use crate::adapter;
use crate::cli::ExportArgs;
use crate::console::log;
use crate::hub;
use crate::model::ModelSpec;
use crate::outputs::Outputs;
use anyhow::Result;
use candle_core::Device;
use serde_json::json;

pub fn run(args: ExportArgs) -> Result<()> {
    let read = Outputs::new(args.overwrite).reads("--model", [&args.model]).reads("--adapter", [&args.adapter]);
    read.file("--out", [&args.out]).check()?;
    let spec = ModelSpec::load(&hub::resolve_without_weights(&args.model, false)?.place)?;
    let adapter = adapter::load(&args.adapter, &Device::Cpu)?;
    adapter.check_fits(&spec)?;
    match args.format {
        adapter::FileFormat::Gguf => adapter::save_gguf(&adapter, &spec, &args.out)?,
    }
    let text = format!("wrote {} modules to {}", adapter.modules.len(), args.out.display());
    log::info(&text, json!({"modules": adapter.modules.len(), "out": args.out}));
    Ok(())
}

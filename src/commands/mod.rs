//! One file per command: load, call, write. No maths.

pub mod data;
pub mod direction;
pub mod eval;
pub mod generate;
pub mod inspect;
pub mod landscape;
pub mod merge;
pub mod project;
pub mod train;

use crate::adapter::{self, BaseIdentity};
use crate::checkpoint::Checkpoint;
use crate::cli::{DeviceArg, DtypeArg, ModelArgs};
use crate::hub;
use crate::model::{Decoder, DeviceKind, ModelSpec};
use crate::report::progress_bar;
use anyhow::{Context, Result};
use candle_core::DType;
use std::io::Write;
use std::path::PathBuf;

impl From<DeviceArg> for DeviceKind {
    fn from(device: DeviceArg) -> Self {
        match device {
            DeviceArg::Auto => Self::Auto,
            DeviceArg::Cpu => Self::Cpu,
            DeviceArg::Cuda => Self::Cuda,
            DeviceArg::Metal => Self::Metal,
        }
    }
}

impl From<DtypeArg> for DType {
    fn from(dtype: DtypeArg) -> Self {
        match dtype {
            DtypeArg::F32 => Self::F32,
            DtypeArg::F16 => Self::F16,
            DtypeArg::Bf16 => Self::BF16,
        }
    }
}

/// Writes to standard output. Unlike `print!` it does not panic where nothing can be written (a full disk, a closed pipe).
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("writing to standard output")
}

/// Loads a model, with its adapter if one is given; returns its folder too, for the tokenizer.
fn load_model(args: &ModelArgs) -> Result<(Decoder, PathBuf)> {
    let device = DeviceKind::from(args.device).open()?;
    let base = hub::resolve(&args.model, false)?;
    let spec = ModelSpec::load(&base.dir)?;
    let checkpoint = Checkpoint::open(&base.dir)?;
    let adapter = args.adapter.as_deref().map(|dir| adapter::load(dir, &device)).transpose()?;
    if let (Some(adapter), Some(dir)) = (&adapter, &args.adapter) {
        adapter.check_fits(&spec)?;
        BaseIdentity::check(dir, adapter, &checkpoint)?;
    }
    let progress = progress_bar(0, "loading model");
    let mut model = Decoder::load(&spec, &checkpoint, (&device, args.dtype.into()), false, &progress)?;
    progress.finish_and_clear();
    if let Some(adapter) = &adapter {
        let (loras, parameters) = adapter.trainable()?;
        model.attach(loras, parameters)?;
    }
    Ok((model, base.dir))
}

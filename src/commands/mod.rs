//! One file per command: load, call, write. No maths.

pub mod data;
pub mod direction;
pub mod eval;
pub mod generate;
pub mod merge;
pub mod train;

use crate::adapter::{self, BaseIdentity};
use crate::checkpoint::Checkpoint;
use crate::cli::{DeviceArg, ModelArgs};
use crate::hub;
use crate::model::{Decoder, DeviceKind, ModelSpec};
use crate::report::progress_bar;
use anyhow::Result;
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

/// Loads a model, with its adapter if one is given; returns its folder too, for the tokenizer.
fn load_model(args: &ModelArgs) -> Result<(Decoder, PathBuf)> {
    let device = DeviceKind::from(args.device).open()?;
    let base = hub::resolve(&args.model)?;
    let spec = ModelSpec::load(&base.dir)?;
    let checkpoint = Checkpoint::open(&base.dir)?;
    let adapter = args.adapter.as_deref().map(|dir| adapter::load(dir, &device)).transpose()?;
    if let (Some(adapter), Some(dir)) = (&adapter, &args.adapter) {
        adapter.check_fits(&spec)?;
        BaseIdentity::check(dir, adapter, &checkpoint)?;
    }
    let progress = progress_bar(0, "loading model");
    let mut model = Decoder::load(&spec, &checkpoint, &device, false, &progress)?;
    progress.finish_and_clear();
    if let Some(adapter) = &adapter {
        let (loras, parameters) = adapter.trainable()?;
        model.attach(loras, parameters)?;
    }
    Ok((model, base.dir))
}

//! One file per command: load, call, write. No maths.

pub mod data;
pub mod direction;
pub mod eval;
pub mod generate;
pub mod init;
pub mod inspect;
pub mod landscape;
pub mod merge;
pub mod meta;
pub mod project;
pub mod report;
pub mod train;

use crate::adapter::{self, BaseIdentity};
use crate::checkpoint::Checkpoint;
use crate::cli::{BaseArgs, DeviceArg, DtypeArg, ModelArgs};
use crate::hub;
use crate::model::{Decoder, DeviceKind, ModelSpec, Parameters};
use crate::report::progress_bar;
use anyhow::{Context, Result};
use candle_core::DType;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

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

/// A loaded base model, to put adapters on.
struct Base {
    model: Decoder,
    /// For the tokenizer.
    dir: PathBuf,
}

impl Base {
    fn load(args: &BaseArgs, adapters: &[&Path]) -> Result<Self> {
        let device = DeviceKind::from(args.device).open()?;
        let dir = hub::resolve(&args.model, false)?.dir;
        let spec = ModelSpec::load(&dir)?;
        let checkpoint = Checkpoint::open(&dir)?;
        // Adapters are looked at before the weights are loaded.
        for dir in adapters {
            let adapter = adapter::load(dir, &device)?;
            adapter.check_fits(&spec)?;
            BaseIdentity::check(dir, &adapter, &checkpoint)?;
        }
        let progress = progress_bar(0, "loading model");
        let model = Decoder::load(&spec, &checkpoint, (&device, args.dtype.into()), false, &progress)?;
        progress.finish_and_clear();
        Ok(Self { model, dir })
    }

    /// Puts an adapter on the model, or none, in place of the one that is there.
    fn put(&mut self, adapter: Option<&Path>) -> Result<()> {
        let Some(dir) = adapter else { return self.model.attach(BTreeMap::new(), Parameters::new()) };
        let adapter = adapter::load(dir, self.model.device())?;
        adapter.check_fits(self.model.spec())?;
        let (loras, parameters) = adapter.trainable()?;
        self.model.attach(loras, parameters)
    }
}

/// Loads a model, with its adapter if one is given; returns its folder too, for the tokenizer.
fn load_model(args: &ModelArgs) -> Result<(Decoder, PathBuf)> {
    let adapter = args.adapter.as_deref();
    let mut base = Base::load(&args.base, adapter.as_slice())?;
    base.put(adapter)?;
    Ok((base.model, base.dir))
}

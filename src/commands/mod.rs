//! One file per command: load, call, write. No maths.

pub mod compare;
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

use crate::adapter::Base;
use crate::cli::{BaseArgs, ModelArgs};
use crate::model::Decoder;
use crate::ranks::Ranks;
use anyhow::{Context, Result};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Writes to standard output, on the first rank. Unlike `print!` it does not panic if nothing can be written (a full
/// disk, a closed pipe).
fn print(text: &str) -> Result<()> {
    if !Ranks::here().is_first() {
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("writing to standard output")
}

/// Loads a model, with its adapter if one is given; returns its folder too, for the tokenizer.
fn load_model(args: &ModelArgs) -> Result<(Decoder, PathBuf)> {
    let adapter = args.adapter.as_deref();
    let mut base = load_base(&args.base, adapter.as_slice())?;
    base.put(adapter)?;
    Ok((base.model, base.dir))
}

/// Loads a model that the adapters fit.
fn load_base(args: &BaseArgs, adapters: &[&Path]) -> Result<Base> {
    Base::load(&args.model, args.device, args.dtype.into(), adapters)
}

//! One file per command: load, call, write. No maths.

pub mod compare;
pub mod data;
pub mod direction;
pub mod doctor;
pub mod eval;
pub mod export;
pub mod generate;
pub mod init;
pub mod inspect;
pub mod landscape;
pub mod merge;
pub mod meta;
pub mod project;
pub mod report;
pub mod serve;
pub mod train;

use crate::adapter::Base;
use crate::cli::{BaseArgs, ModelArgs};
use crate::hub::{self, Resolved};
use crate::model::Decoder;
use crate::ranks::Ranks;
use anyhow::{Context, Result};
use std::io::{self, StdoutLock, Write, stdout};
use std::path::Path;

/// Standard output; an error (a full disk) says that it was this that could not be written. Unlike `print!` it does not
/// panic then.
struct Output(StdoutLock<'static>);

fn standard_output() -> Output {
    Output(stdout().lock())
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(unwritten)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(unwritten)
    }
}

/// The kind is kept, as a reader that goes away early is no failure.
fn unwritten(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("writing to standard output: {error}"))
}

/// Writes to standard output, on the first rank.
fn print(text: &str) -> Result<()> {
    if !Ranks::here().is_first() {
        return Ok(());
    }
    let mut out = standard_output();
    Ok(out.write_all(text.as_bytes()).and_then(|()| out.flush())?)
}

/// Where the model and its tokenizer are, fetched if necessary.
fn find_model(args: &BaseArgs) -> Result<Resolved> {
    hub::resolve(&args.model, false)?.with_tokenizer(args.tokenizer.as_deref(), false).context("--tokenizer")
}

/// The last part of a path or id.
fn short(place: &str) -> String {
    Path::new(place).file_name().map_or(place.to_string(), |name| name.to_string_lossy().into_owned())
}

/// What a model with its adapter is called beside other models: the last parts of their names.
fn generator(model: &str, adapter: Option<&Path>) -> String {
    let Some(adapter) = adapter else { return short(model) };
    // A run's adapter lies in its folder's "adapter".
    let folder = if adapter.ends_with("adapter") { adapter.parent().unwrap_or(adapter) } else { adapter };
    format!("{} + {}", short(model), short(&folder.to_string_lossy()))
}

/// Loads the model `found`, with its adapter if one is given.
fn load_model(args: &ModelArgs, found: &Resolved) -> Result<Decoder> {
    let adapter = args.adapter.as_deref();
    let mut base = load_base(&args.base, found, adapter.as_slice())?;
    base.put(adapter)?;
    Ok(base.model)
}

/// Loads the model `found`, which the adapters fit.
fn load_base(args: &BaseArgs, found: &Resolved, adapters: &[&Path]) -> Result<Base> {
    Base::load(found.clone(), &args.compute(), adapters)
}

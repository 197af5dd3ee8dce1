//! A loaded base model, for use with one adapter after another.

use super::{BaseIdentity, load_for};
use crate::adapter::Adapter;
use crate::checkpoint::Checkpoint;
use crate::console::progress_bar;
use crate::hub::Resolved;
use crate::model::{Compute, Decoder, ModelSpec, Parameters};
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::Path;

/// A base model with an adapter, or none, attached.
pub struct Base {
    pub model: Decoder,
    /// Where it was found, for its tokenizer.
    pub found: Resolved,
}

impl Base {
    /// Loads the model that was found, after checking that the adapters in the folders `adapters` fit it.
    ///
    /// # Errors
    /// As [`Decoder::load`] and [`load_for`].
    pub fn load(found: Resolved, compute: &Compute, adapters: &[&Path]) -> Result<Self> {
        let dtype = compute.dtype.into();
        let device = compute.device.open_for(dtype)?;
        let spec = ModelSpec::load(&found.place)?;
        let checkpoint = Checkpoint::open(&found.place)?;
        for dir in adapters {
            let adapter = load_for(dir, &spec, &device)?;
            BaseIdentity::check(dir, &adapter, &checkpoint)?;
        }
        let progress = progress_bar(0, "loading model");
        let model = Decoder::load(&spec, &checkpoint, (&device, dtype), compute.frozen(), &progress)?;
        progress.finish_and_clear();
        Ok(Self { model, found })
    }

    /// Attaches the adapter in a folder, or none, in place of the present one.
    ///
    /// # Errors
    /// As [`load_for`].
    pub fn put(&mut self, adapter: Option<&Path>) -> Result<()> {
        match adapter {
            Some(dir) => self.put_loaded(&load_for(dir, self.model.spec(), self.model.device())?),
            None => self.model.attach(BTreeMap::new(), Parameters::new()),
        }
    }

    /// As [`Base::put`], for an adapter in memory, on whatever device it is.
    ///
    /// # Errors
    /// An adapter that does not fit.
    pub fn put_loaded(&mut self, adapter: &Adapter) -> Result<()> {
        adapter.check_fits(self.model.spec())?;
        let (loras, parameters) = adapter.to_device(self.model.device())?.trainable()?;
        self.model.attach(loras, parameters)
    }
}

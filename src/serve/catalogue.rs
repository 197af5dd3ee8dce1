//! What is served: a base and its adapters, by name.

use crate::adapter::{Base, load_for};
use crate::ensure_valid;
use crate::eval::Encoder;
use crate::model::Decoder;
use anyhow::{Context, Result};
use std::collections::HashSet;
use std::path::PathBuf;

/// The models of a server, which share the base's weights.
pub struct Catalogue {
    /// The base's name first, then the adapters' in the order given.
    pub(super) names: Vec<String>,
    /// By the numbers of the names.
    pub(super) decoders: Vec<Decoder>,
    pub(super) encoder: Encoder,
}

impl Catalogue {
    /// The base's name first, then the adapters' in the order given.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// `name`: the base's.
    ///
    /// # Errors
    /// As [`load_for`]; two models of one name; an adapter that does not fit.
    pub fn new(name: String, base: &Base, adapters: &[(String, PathBuf)], encoder: Encoder) -> Result<Self> {
        let mut known = HashSet::from([name.as_str()]);
        for (name, _) in adapters {
            ensure_valid!(!name.is_empty(), "--adapter: the name is empty; expected NAME=DIR");
            ensure_valid!(known.insert(name), "--adapter: two models are called {name}; requests choose by the name");
        }
        let mut decoders = vec![base.model.clone()];
        for (name, dir) in adapters {
            let adapter = load_for(dir, base.model.spec(), base.model.device())?;
            let (loras, parameters) = adapter.trainable()?;
            let mut decoder = base.model.clone();
            decoder.attach(loras, parameters).with_context(|| format!("--adapter {name}"))?;
            decoders.push(decoder);
        }
        let names = [name].into_iter().chain(adapters.iter().map(|(name, _)| name.clone())).collect();
        Ok(Self { names, decoders, encoder })
    }
}

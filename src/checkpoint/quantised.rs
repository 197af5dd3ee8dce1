//! Weights of a checkpoint that are stored quantised.

use super::stored::Stored;
use super::{Checkpoint, experts, four_bit};
use crate::invalid;
use crate::quant::{Blocks, Ggml, Quantised};
use anyhow::{Result, ensure};
use std::collections::BTreeMap;

impl Checkpoint {
    /// With weights in four bits shown as the matrices that they stand for, and experts that lie in one tensor one by one.
    ///
    /// # Errors
    /// As [`four_bit::fold`].
    pub(super) fn folded(mut self) -> Result<Self> {
        let mut tensors = std::mem::take(&mut self.tensors);
        let place = self.shards.first().map_or(String::new(), |shard| shard.path.display().to_string());
        let folded = four_bit::fold(&mut tensors, |name, info| self.bytes_of(name, info));
        self.four_bit = folded.map_err(|e| e.context(place))?;
        experts::split(&mut tensors);
        self.tensors = tensors;
        Ok(self)
    }

    /// Whether any weight is stored quantised.
    pub fn is_quantised(&self) -> bool {
        self.shown().any(|(_, info)| info.stored.is_quantised())
    }

    /// The bytes of each weight that is stored quantised, by name, with those of what belongs to it.
    pub fn quantised_bytes(&self) -> BTreeMap<String, usize> {
        let quantised = self.shown().filter(|(_, info)| info.stored.is_quantised());
        quantised
            .map(|(name, info)| {
                let companions = self.four_bit.get(name).into_iter().flat_map(|companions| companions.tensors());
                (name.to_string(), info.bytes() + companions.map(|info| info.bytes()).sum::<usize>())
            })
            .collect()
    }

    /// A matrix as it is stored, if that is in quantised blocks; rows in transformers' order.
    ///
    /// # Errors
    /// An unknown name; blocks that are damaged, or a failed read.
    pub fn quantised(&self, name: &str) -> Result<Option<Quantised>> {
        let info = self.required(name)?;
        let read = || match (info.stored, &info.shape[..]) {
            (Stored::Blocks(kind), [rows, columns]) => {
                let bytes = self.read_bytes(name)?;
                ensure!(kind.is_finite(&bytes), invalid!("blocks with infinite or undefined scales"));
                Ok(Some(Quantised::new((*rows, *columns), Blocks::Ggml(Ggml { kind, bytes }))?))
            }
            (Stored::FourBit, _) => {
                let Some(companions) = self.four_bit.get(name) else { return Ok(None) };
                Ok(Some(four_bit::matrix(self.read_bytes(name)?, companions, |info| self.bytes_of(name, info))?))
            }
            _ => Ok(None),
        };
        read().map_err(|e: anyhow::Error| e.context(format!("tensor {name} in {}", self.path_of(info).display())))
    }
}

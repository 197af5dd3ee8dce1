//! Base + adapter -> one checkpoint: W ← W + s · B A for the adapted linear layers, shard by shard.

use super::Adapter;
use crate::checkpoint::{Checkpoint, rewrite};
use crate::ops::sum::is_finite;
use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use indicatif::ProgressBar;
use std::path::Path;

/// Writes the merged model to `out`, in the layout and (unless `dtype` is given) the types of `source`.
///
/// # Errors
/// A merged weight that is not finite, or does not fit the type it is stored in.
pub fn merge(
    source: &Path,
    checkpoint: &Checkpoint,
    adapter: &Adapter,
    out: &Path,
    dtype: Option<DType>,
    progress: &ProgressBar,
) -> Result<()> {
    rewrite(source, checkpoint, out, dtype, |name| merged(name, checkpoint, adapter), progress)
}

/// The weight `name` with its update, in f32; `None` if the adapter has none for it.
///
/// # Errors
/// A sum that is not finite.
pub fn merged(name: &str, checkpoint: &Checkpoint, adapter: &Adapter) -> Result<Option<Tensor>> {
    let Some(module) = name.strip_suffix(".weight").and_then(|module| adapter.modules.get(module)) else {
        return Ok(None);
    };
    let update = (module.b.matmul(&module.a)? * adapter.scale(module))?;
    let weight = (checkpoint.tensor(name, DType::F32, &Device::Cpu)? + update)?;
    ensure!(is_finite(&weight)?, "merging makes {name} infinite or NaN");
    Ok(Some(weight))
}

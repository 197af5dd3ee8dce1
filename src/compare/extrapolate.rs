//! LoX (arXiv 2506.15606): the aligned model moved further along its alignment before it is fine-tuned,
//! W_aligned + α U_k diag(σ_k) R_kᵀ in every linear layer, with V's k leading singular directions.

use super::direction::compute_for;
use super::options::Extrapolate;
use crate::checkpoint::{Checkpoint, rewrite};
use crate::config::Settings;
use crate::hub;
use crate::method::direction_file::Directions;
use crate::method::spectral::Keep;
use crate::names::Targets;
use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use indicatif::ProgressBar;
use std::path::Path;

/// The folder of the extrapolated model, which is made unless it exists.
///
/// # Errors
/// No pair to compute the direction from; a folder that cannot be written.
pub fn extrapolated(settings: &Settings, extrapolate: Extrapolate, dir: &Path) -> Result<String> {
    let Extrapolate { rank, alpha } = extrapolate;
    let words = format!("{}\n{:?}\n{rank}\n{alpha}", settings.model.aligned, settings.model.unaligned);
    let name = format!("lox-{}", &blake3::hash(words.as_bytes()).to_hex()[..16]);
    let out = dir.join("models").join(&name);
    if !out.exists() {
        let file = dir.join("models").join(format!("{name}.direction.safetensors"));
        compute_for(settings, Targets::AllLinear, Keep::Rank(rank), &file)?;
        let directions = Directions::open(&file)?;
        let base = hub::resolve(&settings.model.aligned, true)?.place;
        let checkpoint = Checkpoint::open(&base)?;
        let moved = |name: &str| moved(name, &checkpoint, &directions, extrapolate);
        rewrite(&base, &checkpoint, &out, None, moved, &ProgressBar::hidden())?;
    }
    Ok(out.display().to_string())
}

/// A weight of a linear layer, moved; `None` for any other tensor.
fn moved(
    name: &str,
    checkpoint: &Checkpoint,
    directions: &Directions,
    Extrapolate { rank, alpha }: Extrapolate,
) -> Result<Option<Tensor>> {
    let module = name.strip_suffix(".weight").filter(|module| directions.shape(module).is_some());
    let Some(module) = module else { return Ok(None) };
    let weight = checkpoint.tensor(name, DType::F32, &Device::Cpu)?;
    let direction = directions.read(module)?;
    if direction.rank() == 0 {
        return Ok(Some(weight));
    }
    let step = direction.matrix(rank)?;
    Ok(Some((weight + (step * alpha)?)?))
}

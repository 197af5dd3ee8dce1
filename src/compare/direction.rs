//! Directions that a comparison computes itself, once per pair of models.

use crate::config::Settings;
use crate::hub;
use crate::invalid;
use crate::method::DEFAULT_TOLERANCE;
use crate::method::direction::{DirectionRequest, compute};
use crate::method::spectral::Keep;
use crate::names::Targets;
use anyhow::{Context, Result};
use indicatif::ProgressBar;
use std::path::{Path, PathBuf};

/// The direction that Safe LoRA projects onto: the config's, or else one in the comparison's folder `dir`, computed
/// once per pair and target modules.
///
/// # Errors
/// As [`compute_for`].
pub fn projected_on(settings: &Settings, dir: &Path) -> Result<PathBuf> {
    if let Some(file) = &settings.asft.direction {
        return Ok(PathBuf::from(file));
    }
    let targets = &settings.lora.target_modules;
    let words = format!("{}\n{:?}\n{targets:?}", settings.model.aligned, settings.model.unaligned);
    let name = format!("direction-{}.safetensors", &blake3::hash(words.as_bytes()).to_hex()[..16]);
    let out = dir.join("models").join(name);
    if !out.exists() {
        compute_for(settings, targets.clone(), Keep::Tolerance(DEFAULT_TOLERANCE), &out)?;
    }
    Ok(out)
}

/// Computes the direction of the settings' pair into `out`.
///
/// # Errors
/// Settings without an unaligned model; models that cannot be read or do not fit each other.
pub fn compute_for(settings: &Settings, targets: Targets, keep: Keep, out: &Path) -> Result<()> {
    let unaligned = settings.model.unaligned.as_deref();
    let unaligned = unaligned.ok_or_else(|| invalid!("a direction has to be computed, which needs model.unaligned"))?;
    let request = DirectionRequest {
        aligned: hub::resolve(&settings.model.aligned, true).context("model.aligned")?,
        unaligned: hub::resolve(unaligned, true).context("model.unaligned")?,
        out: out.to_path_buf(),
        targets,
        keep,
        allow_missing: false,
        allow_equal: false,
        allow_quantised: false,
    };
    compute(&request, &ProgressBar::hidden())?;
    Ok(())
}

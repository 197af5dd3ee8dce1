//! A direction that a run does not compute itself.

use super::inputs::target_shapes;
use crate::checkpoint::Checkpoint;
use crate::config::Settings;
use crate::ensure_valid;
use crate::hub::at_revision;
use crate::method::direction_file::Directions;
use crate::model::ModelSpec;
use crate::report::{RunRecord, hash_file};
use anyhow::Result;
use std::path::Path;

/// A direction file, if it was made for these modules of this checkpoint.
pub fn open_direction(
    path: &Path,
    targets: &[String],
    spec: &ModelSpec,
    checkpoint: &Checkpoint,
    record: &mut RunRecord,
) -> Result<Directions> {
    let directions = Directions::open(path)?;
    directions.check_against(&target_shapes(spec, targets), Some(checkpoint))?;
    record.input("direction", &path.display().to_string(), hash_file(path)?);
    let unaligned = &directions.header().unaligned;
    let name = at_revision(&unaligned.id, unaligned.revision.as_deref());
    record.input("unaligned", &name, unaligned.hash.clone());
    Ok(directions)
}

/// Modules of `targets` where V = 0.
pub fn flat_modules(directions: &Directions, targets: &[String]) -> usize {
    targets.iter().filter(|module| directions.shape(module).is_some_and(|(_, _, k)| k == 0)).count()
}

/// Refuses a direction that is 0 in every target where the penalty depends on it.
pub fn check_not_flat(settings: &Settings, directions: &Directions, targets: &[String]) -> Result<()> {
    ensure_valid!(
        !settings.penalises_by_direction() || flat_modules(directions, targets) < targets.len(),
        "direction file {} has V = 0 in all {} targeted modules: the models that it was computed from ({} and {}) are \
         equal there; compute another with `asft direction`, or set asft.penalize = \"all\", which needs none",
        directions.path().display(),
        targets.len(),
        directions.header().aligned.id,
        directions.header().unaligned.id
    );
    Ok(())
}

//! Whether the output folder's disk has room for what a run will write.

use crate::adapter::Adapter;
use crate::checkpoint::{Checkpoint, existing};
use crate::config::Settings;
use crate::ensure_valid;
use crate::train::defence;
use crate::train::folder::output::OutputFolder;
use anyhow::{Context, Result};
use indicatif::DecimalBytes;

/// Besides the tensors: configs, the tokenizer, metrics.
const SMALL_FILES_BYTES: u64 = 32 << 20;

/// Checks that the disk has room for the result and the checkpoints. The direction's size is not known before it is
/// computed.
pub fn check_disk(
    settings: &Settings,
    output: &OutputFolder,
    base: &Checkpoint,
    adapter: Option<&Adapter>,
) -> Result<()> {
    let dir = output.dir();
    let trained: usize = match adapter {
        Some(adapter) => adapter.modules.values().map(|module| module.a.elem_count() + module.b.elem_count()).sum(),
        None => base.names().filter_map(|name| base.info(name)).map(|info| info.elements()).sum(),
    };
    let needed = bytes_needed(settings, 4 * trained as u64).saturating_sub(output.bytes_to_go());
    let place = existing(dir);
    let stat = rustix::fs::statvfs(place).with_context(|| format!("looking at the disk of {}", place.display()))?;
    let free = stat.f_bavail * stat.f_frsize;
    ensure_valid!(
        needed <= free,
        "output.dir {}: the run needs about {} more for its result and checkpoints, the disk has {} left; free some, \
         choose another folder or lower output.keep_last",
        dir.display(),
        DecimalBytes(needed),
        DecimalBytes(free)
    );
    Ok(())
}

/// Bytes of the output of a run whose trained tensors take `tensors` bytes.
fn bytes_needed(settings: &Settings, tensors: u64) -> u64 {
    let output = &settings.output;
    // A new checkpoint is complete before an old one is removed, and a stopped run writes one in any case.
    let regular = if output.save_every_steps.is_some() { (output.keep_last as u64).saturating_add(1) } else { 1 };
    let checkpoints = regular.saturating_add(u64::from(output.save_best));
    // Each holds the parameters and AdamW's two moments, and the copies that a defence keeps.
    let of_each = 3 + defence::of(&settings.defence).needs().copies as u64;
    let copies = checkpoints.saturating_mul(of_each).saturating_add(1);
    tensors.saturating_mul(copies).saturating_add(SMALL_FILES_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_checkpoint_that_can_be_there_at_once_counts() {
        let mut settings = Settings::default();
        assert_eq!(bytes_needed(&settings, 100), SMALL_FILES_BYTES + 100 + 300);
        (settings.output.save_every_steps, settings.output.keep_last) = (Some(10), 2);
        settings.output.save_best = true;
        assert_eq!(bytes_needed(&settings, 100), SMALL_FILES_BYTES + 100 + 4 * 300);
        settings.output.keep_last = usize::MAX;
        assert_eq!(bytes_needed(&settings, 100), u64::MAX);
    }
}

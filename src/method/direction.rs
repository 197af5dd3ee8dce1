//! interim
use crate::hub::Resolved;
use crate::names::Targets;
use std::path::PathBuf;
pub const DEFAULT_TOLERANCE: f64 = 1e-3;
pub enum Keep {
    Tolerance(f64),
    Rank(usize),
}
pub struct DirectionRequest {
    pub aligned: Resolved,
    pub unaligned: Resolved,
    pub targets: Targets,
    pub keep: Keep,
    pub allow_missing: bool,
    pub out: PathBuf,
}
pub fn compute(_: &DirectionRequest, _: &indicatif::ProgressBar) -> anyhow::Result<()> {
    anyhow::bail!("interim")
}

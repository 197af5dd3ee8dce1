//! `asft direction`
use crate::cli::DirectionArgs;
pub fn run(_: DirectionArgs) -> anyhow::Result<()> {
    anyhow::bail!("interim")
}

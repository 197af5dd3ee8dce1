//! `asft direction`: computes a direction file from a pair of models.

use crate::ensure_valid;
use crate::hub;
use crate::method::direction::{DirectionRequest, compute};
use crate::method::factorize::Keep;
use crate::names::Targets;
use anyhow::Result;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::path::PathBuf;

/// Compute the direction of alignment, V = W_aligned - W_unaligned, from a pair of models
#[derive(Args, Debug)]
pub struct DirectionArgs {
    /// The aligned (chat, instruct) model: a folder or a hub id, org/name[@revision]
    #[arg(long, value_name = "ID|DIR")]
    aligned: String,
    /// The model it was aligned from (base): a folder or a hub id
    #[arg(long, value_name = "ID|DIR")]
    unaligned: String,
    /// The direction file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Names separated by commas, "all-linear", or a regular expression for the whole module path
    #[arg(long, value_name = "NAMES", default_value = "q_proj,v_proj")]
    target_modules: String,
    /// Keep the fewest directions that leave a residual of at most this part of C's largest eigenvalue; 0 keeps all
    #[arg(long, value_name = "T", default_value_t = 1e-3, conflicts_with = "rank")]
    tolerance: f64,
    /// Keep this many directions a module instead
    #[arg(long, value_name = "K")]
    rank: Option<usize>,
    /// Where the two models differ in names or shapes, use the modules that are comparable
    #[arg(long)]
    allow_missing: bool,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &DirectionArgs) -> Result<()> {
    let tolerance = args.tolerance;
    ensure_valid!((0.0..1.0).contains(&tolerance), "--tolerance must be at least 0 and below 1, got {tolerance}");
    ensure_valid!(args.rank != Some(0), "--rank must be at least 1");
    let request = DirectionRequest {
        aligned: hub::resolve(&args.aligned)?,
        unaligned: hub::resolve(&args.unaligned)?,
        out: args.out.clone(),
        targets: parse_targets(&args.target_modules),
        keep: args.rank.map_or(Keep::Tolerance(tolerance), Keep::Rank),
        allow_missing: args.allow_missing,
    };
    // Hidden by indicatif where stderr is not a terminal.
    let progress = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    progress.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} modules  {elapsed} elapsed, {eta} left")?);
    let summary = compute(&request, &progress)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        println!("{summary}");
    }
    Ok(())
}

/// Module names and dots only: a list. Anything else: a regular expression.
fn parse_targets(text: &str) -> Targets {
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | ',' | '-' | ' '));
    match text {
        "all-linear" => Targets::AllLinear,
        _ if plain => {
            Targets::List(text.split(',').map(|name| name.trim().to_string()).filter(|name| !name.is_empty()).collect())
        }
        _ => Targets::Regex(text.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_on_the_command_line() {
        assert_eq!(parse_targets("q_proj, v_proj"), Targets::List(vec!["q_proj".into(), "v_proj".into()]));
        assert_eq!(parse_targets("all-linear"), Targets::AllLinear);
        assert_eq!(parse_targets(".*[.]q_proj"), Targets::Regex(".*[.]q_proj".into()));
    }
}

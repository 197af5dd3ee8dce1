//! `asft direction`

use super::print;
use crate::cli::DirectionArgs;
use crate::console::progress_bar;
use crate::ensure_valid;
use crate::hub;
use crate::method::direction::{DirectionRequest, compute};
use crate::method::spectral::Keep;
use crate::names::Targets;
use crate::outputs::Outputs;
use crate::ranks::Ranks;
use anyhow::{Context, Result};

pub fn run(args: DirectionArgs) -> Result<()> {
    let ranks = Ranks::here();
    let json = args.json;
    let request = ranks.agree(ranks.one_first_on_each_machine(|| request(args)))?;
    let summary = ranks.agree(compute(&request, &progress_bar(0, "computing direction")))?;
    let text = if json { serde_json::to_string_pretty(&summary)? } else { summary.to_string() };
    print(&format!("{text}\n"))
}

/// What to compute, with the models fetched if necessary.
fn request(args: DirectionArgs) -> Result<DirectionRequest> {
    let tolerance = args.tolerance;
    ensure_valid!((0.0..1.0).contains(&tolerance), "--tolerance must be at least 0 and below 1, got {tolerance}");
    ensure_valid!(args.rank != Some(0), "--rank must be at least 1");
    let outputs = Outputs::new(args.overwrite).file("--out", [&args.out]);
    outputs.reads("--aligned", [&args.aligned]).reads("--unaligned", [&args.unaligned]).check()?;
    Ok(DirectionRequest {
        aligned: hub::resolve(&args.aligned, false).context("--aligned")?,
        unaligned: hub::resolve(&args.unaligned, false).context("--unaligned")?,
        out: args.out,
        targets: parse_targets(&args.target_modules),
        keep: args.rank.map_or(Keep::Tolerance(tolerance), Keep::Rank),
        allow_missing: args.allow_missing,
        allow_equal: false,
        allow_quantised: args.allow_quantised,
    })
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

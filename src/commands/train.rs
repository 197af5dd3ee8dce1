//! `asft train`

use crate::cli::TrainArgs;
use crate::config::Settings;
use crate::train::{self, RunFlags};
use anyhow::Result;

pub fn run(args: TrainArgs) -> Result<()> {
    let settings = Settings::load(&args.config, &args.set)?;
    if args.check {
        return super::print(&settings.to_toml()?);
    }
    if args.dry_run {
        let forecast = train::dry_run(&settings, args.quiet || args.json)?;
        let text = if args.json { serde_json::to_string_pretty(&forecast)? } else { forecast.to_string() };
        return super::print(&format!("{text}\n"));
    }
    let flags = RunFlags { quiet: args.quiet, overwrite: args.overwrite };
    let outcome = train::run(&settings, flags)?;
    if args.quiet {
        return Ok(());
    }
    eprintln!(
        "{} steps: loss {:.4} -> {:.4} (of which penalty {:.4})",
        outcome.steps, outcome.first_loss, outcome.last_loss, outcome.last_penalty
    );
    if let Some(eval) = outcome.eval {
        eprintln!("validation loss {:.4} over {} label tokens", eval.loss, eval.label_tokens);
    }
    eprintln!("saved {}", outcome.result.display());
    Ok(())
}

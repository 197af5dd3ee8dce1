//! `asft train`

use crate::cli::TrainArgs;
use crate::config::Settings;
use crate::train::{self, Ending, Outcome, RunFlags};
use anyhow::Result;
use std::process::ExitCode;

pub fn run(args: TrainArgs) -> Result<ExitCode> {
    let settings = Settings::load(&args.config, &args.set)?;
    if args.check {
        super::print(&settings.to_toml()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.dry_run {
        let forecast = train::dry_run(&settings, args.quiet || args.json)?;
        let text = if args.json { serde_json::to_string_pretty(&forecast)? } else { forecast.to_string() };
        super::print(&format!("{text}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let resume_command = resume_command(&args);
    let TrainArgs { quiet, overwrite, resume, allow_change, .. } = args;
    match train::run(&settings, &RunFlags { quiet, overwrite, resume, allow_change })? {
        Ending::Finished(outcome) if !quiet => print_outcome(&outcome),
        Ending::AlreadyFinished(result) if !quiet => {
            eprintln!("the run is finished: its result is {}", result.display());
        }
        Ending::Finished(_) | Ending::AlreadyFinished(_) => {}
        Ending::Stopped { signal, step, checkpoint } => {
            eprintln!("stopped by {} after step {step}, kept in {}", signal.name(), checkpoint.display());
            eprintln!("go on with: {resume_command}");
            return Ok(ExitCode::from(signal.exit_code()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_outcome(outcome: &Outcome) {
    eprintln!(
        "{} steps: loss {:.4} -> {:.4} (of which penalty {:.4})",
        outcome.steps, outcome.first_loss, outcome.last_loss, outcome.last_penalty
    );
    if let Some(eval) = outcome.eval {
        eprintln!("validation loss {:.4} over {} label tokens", eval.loss, eval.label_tokens);
    }
    let best = outcome.best_step.map_or(String::new(), |step| format!(", the best state, of step {step}"));
    eprintln!("saved {}{best}", outcome.result.display());
}

/// The command that goes on with the run, for a POSIX shell. Changes that were allowed are part of the run by then.
fn resume_command(args: &TrainArgs) -> String {
    let config = args.config.to_string_lossy();
    let mut words = vec!["asft", "train", "--config", &config];
    for set in &args.set {
        words.extend(["--set", set]);
    }
    if args.quiet {
        words.push("--quiet");
    }
    words.push("--resume");
    // No argument holds a NUL, the only thing that cannot be quoted.
    shlex::try_join(words).unwrap_or_default()
}

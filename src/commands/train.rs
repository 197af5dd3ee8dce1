//! `asft train`

use crate::cli::TrainArgs;
use crate::config::Settings;
use crate::console::log;
use crate::eval::MeanLoss;
use crate::ranks::Ranks;
use crate::report::LossEnds;
use crate::train::{self, Ending, Outcome, RunFlags};
use anyhow::Result;
use serde_json::json;
use std::process::ExitCode;

pub fn run(args: TrainArgs) -> Result<ExitCode> {
    let ranks = Ranks::here();
    if (args.check || args.dry_run) && !ranks.is_first() {
        return Ok(ExitCode::SUCCESS);
    }
    let settings = Settings::load(&args.config, &args.set);
    let settings = if args.check || args.dry_run { settings } else { ranks.agree(settings) }?;
    if args.check {
        super::print(&settings.to_toml()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.dry_run {
        let forecast = train::dry_run(&settings)?;
        let text = if args.json { serde_json::to_string_pretty(&forecast)? } else { forecast.to_string() };
        super::print(&format!("{text}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let resume_command = resume_command(&args);
    let TrainArgs { overwrite, resume, allow_change, .. } = args;
    match train::run(&settings, &RunFlags { overwrite, resume, allow_change })? {
        Ending::Finished(outcome) => say_outcome(&outcome),
        Ending::AlreadyFinished(result) => {
            let text = format!("the run is finished: its result is {}", result.display());
            log::info(&text, json!({"result": result}));
        }
        Ending::Stopped { signal, step, checkpoint } => {
            let text = format!("stopped by {} after step {step}, kept in {}", signal.name(), checkpoint.display());
            log::notice(&text, json!({"signal": signal.name(), "step": step, "checkpoint": checkpoint}));
            log::notice(&format!("go on with: {resume_command}"), json!({"command": resume_command}));
            return Ok(ExitCode::from(signal.exit_code()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn say_outcome(outcome: &Outcome) {
    let Outcome { steps, loss: LossEnds { steps: window, first, last, above_start }, last_penalty, .. } = *outcome;
    let means = if window > 1 { format!(", means of {window} steps") } else { String::new() };
    log::info(
        &format!("{steps} steps: loss {first:.4} -> {last:.4}{means} (penalty of the last step {last_penalty:.4})"),
        json!({"steps": steps, "first_loss": first, "last_loss": last, "mean_of": window, "last_penalty": last_penalty}),
    );
    if above_start {
        log::warn("the loss ended far above its start: this result is probably of no use", json!({"loss": last}));
    }
    if let Some(MeanLoss { loss, label_tokens }) = outcome.eval {
        let text = format!("validation loss {loss:.4} over {label_tokens} label tokens");
        log::info(&text, json!({"eval_loss": loss, "eval_tokens": label_tokens}));
    }
    let best = outcome.best_step.map_or(String::new(), |step| format!(", the best state, of step {step}"));
    let text = format!("saved {}{best}", outcome.result.display());
    log::info(&text, json!({"result": outcome.result, "best_step": outcome.best_step}));
}

/// The command that resumes the run, for a POSIX shell. Allowed changes are part of the run by then.
fn resume_command(args: &TrainArgs) -> String {
    let config = args.config.to_string_lossy();
    let mut words = vec!["asft", "train", "--config", &config];
    for set in &args.set {
        words.extend(["--set", set]);
    }
    words.extend(log::flags());
    words.push("--resume");
    // No argument holds a NUL, the only thing that cannot be quoted.
    shlex::try_join(words).unwrap_or_default()
}

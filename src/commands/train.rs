//! `asft train`

use crate::cli::TrainArgs;
use crate::config::Settings;
use crate::console::Table;
use crate::console::log;
use crate::eval::{MeanLoss, Suite};
use crate::model::{DeviceKind, Dtype};
use crate::ranks::Ranks;
use crate::report::{LossEnds, SuiteEnds, Value};
use crate::train::{self, Ending, Outcome, RunFlags, Tuning};
use anyhow::{Context, Result};
use clap::ValueEnum;
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;

pub fn run(args: TrainArgs) -> Result<ExitCode> {
    let ranks = Ranks::here();
    if (args.check || args.dry_run) && !ranks.is_first() {
        return Ok(ExitCode::SUCCESS);
    }
    let settings = Settings::load(&args.config, &args.set);
    let settings = if args.check || args.dry_run { settings } else { ranks.agree(settings) }?;
    if args.check {
        if let Some(suite) = &settings.eval.suite {
            Suite::load(Path::new(suite)).context("eval.suite")?;
        }
        super::print(&settings.to_toml()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.dry_run {
        let mut settings = settings;
        // A card is one of NVIDIA's.
        if let Some(device) = args.device.or(args.gpu.map(|_| DeviceKind::Cuda)) {
            settings.model.device = device;
        }
        let forecast = train::dry_run(&settings, args.gpu)?;
        let text = if args.json { serde_json::to_string_pretty(&forecast)? } else { forecast.to_string() };
        super::print(&format!("{text}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let resume_command = resume_command(&args);
    let TrainArgs { overwrite, resume, allow_change, .. } = args;
    match train::run(&settings, &RunFlags { overwrite, resume, allow_change })? {
        Ending::Finished(outcome) => {
            say_outcome(&outcome);
            say_evaluations(&settings, &outcome);
            return Ok(outcome.signal.map_or(ExitCode::SUCCESS, |signal| ExitCode::from(signal.exit_code())));
        }
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

/// What the suite found before and after or, without a suite, how to find it.
fn say_evaluations(settings: &Settings, outcome: &Outcome) {
    let command = eval_command(settings, &outcome.result);
    let Some(ends) = &outcome.suite else {
        let text = format!("to measure what it answers: {command}");
        return log::info(&text, json!({"command": command, "result": outcome.result}));
    };
    let SuiteEnds { suite, before, after } = ends;
    let Some(row) = after else {
        let text = format!("{suite} was not measured on the result; to do so: {command}");
        return log::notice(&text, json!({"command": command}));
    };
    let at = |step: usize| if step == 0 { "before".to_string() } else { format!("after step {step}") };
    log::info(&format!("evaluations of {suite}:"), json!({"suite": suite, "before": before, "after": after}));
    let mut table = Table::new(["".to_string(), at(0), at(row.step)]);
    let text = |value: Option<Value>| value.map_or("-".to_string(), Value::text);
    for change in ends.changes().into_iter().filter(|change| !change.says_nothing()) {
        table.push([change.name, text(change.before), text(change.after)]);
    }
    for line in table.to_string().lines() {
        log::info(&format!("  {line}"), json!({}));
    }
}

/// The command that measures a run's result and, for an adapter, the model below it, for a POSIX shell. What it is measured
/// on is left to fill in, unless the run has a suite.
fn eval_command(settings: &Settings, result: &Path) -> String {
    let (model, result) = (&settings.model, result.to_string_lossy());
    let mut words = vec!["asft".to_string(), "eval".to_string()];
    let mut add = |option: &[&str]| words.extend(option.iter().map(ToString::to_string));
    match settings.train.method {
        Tuning::Lora => add(&["--model", &model.aligned, "--baseline", "--adapter", &result]),
        Tuning::Full => add(&["--model", &result]),
    }
    if let (Tuning::Lora, Some(tokenizer)) = (settings.train.method, &model.tokenizer) {
        add(&["--tokenizer", tokenizer]);
    }
    if model.dtype != Dtype::F32 {
        add(&["--dtype", &name(model.dtype)]);
    }
    if let Some(quantize) = model.quantize {
        add(&["--quantize", &name(quantize)]);
        add(if model.quantize_head { &["--quantize-head"] } else { &[] });
    }
    if model.device != DeviceKind::Auto {
        add(&["--device", &name(model.device)]);
    }
    match &settings.eval.suite {
        Some(suite) => add(&["--suite", suite]),
        None => add(&["--preset", "harmful", "--data", "PROMPTS.jsonl"]),
    }
    shlex::try_join(words.iter().map(String::as_str)).unwrap_or_default()
}

/// A choice as it is typed.
fn name(choice: impl ValueEnum) -> String {
    choice.to_possible_value().map_or(String::new(), |value| value.get_name().to_string())
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

//! `asft eval`

use super::{find_model, generator, load_base, print};
use crate::checkpoint::write_atomic;
use crate::cli::EvalArgs;
use crate::console::Table;
use crate::data::{Columns, PROMPT_FIELDS, TemplateVariables, restored};
use crate::ensure_valid;
use crate::eval::alpaca_eval::{self, Answer};
use crate::eval::{Evaluation, Metric, Outcome, Prepared, Suite, locate};
use crate::model::ModelSpec;
use crate::outputs::Outputs;
use crate::report::{Evaluated, Value};
use anyhow::{Context, Result};
use serde_json::{Map, Value as Json, json};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

pub fn run(args: EvalArgs) -> Result<()> {
    ensure_valid!(args.batch_size > 0, "--batch-size should be at least 1");
    let evaluations = match &args.suite {
        Some(suite) => Suite::load(suite)?.eval,
        None => evaluations(&args)?,
    };
    let read = Outputs::new(args.overwrite).reads("--model", [&args.base.model]).reads("--adapter", &args.adapter);
    let read = read.reads("--tokenizer", &args.base.tokenizer);
    let read =
        evaluations.iter().fold(read.reads("--suite", &args.suite), |read, evaluation| evaluation.declare_inputs(read));
    read.file("--samples", &args.samples).file("--alpaca-eval", &args.alpaca_eval).check()?;
    let answers = evaluations.iter().any(|evaluation| evaluation.metric() != Metric::Loss);
    ensure_valid!(
        answers || args.samples.is_none(),
        "--samples has nothing to write: the loss asks for no answers; choose another --metric, such as refusal"
    );
    let adapters: Vec<&Path> = args.adapter.iter().map(AsRef::as_ref).collect();
    check_export(&args, &evaluations)?;
    // Files are located before weights are fetched, and samples are checked before weights are loaded.
    let located = locate(evaluations)?;
    let instructions = match (&args.alpaca_eval, &located[..]) {
        (Some(_), [only]) => only.instructions().context("--alpaca-eval")?,
        _ => vec![],
    };
    let found = find_model(&args.base)?;
    let (spec, device) = (ModelSpec::load(&found.place)?, args.base.device.open_for(args.base.dtype.into())?);
    let prepared = Prepared::new(&located, &found, &spec, (&device, args.base.dtype.into()))?;
    let mut base = load_base(&args.base, &found, &adapters)?;
    let mut rows = vec![];
    if args.baseline || adapters.is_empty() {
        rows.push((args.base.model.clone(), prepared.measure(&base.model, args.batch_size)?));
    }
    for dir in adapters {
        base.put(Some(dir))?;
        rows.push((dir.display().to_string(), prepared.measure(&base.model, args.batch_size)?));
    }
    if let Some(path) = &args.samples {
        write_atomic(path, |file| Ok(file.write_all(samples(&rows).as_bytes())?)).context("--samples")?;
    }
    if let Some(path) = &args.alpaca_eval {
        let text = exported(&args, &rows, &instructions)?;
        write_atomic(path, |file| Ok(file.write_all(text.as_bytes())?)).context("--alpaca-eval")?;
    }
    match (&rows[..], args.json) {
        (rows, true) => print(&format!("{}\n", report(rows))),
        ([(_, outcomes)], false) => print(&listing(outcomes)),
        (rows, false) => print(&table(rows)),
    }
}

/// Refuses what AlpacaEval's layout has no place for: several models, or several answers to a question.
fn check_export(args: &EvalArgs, evaluations: &[Evaluation]) -> Result<()> {
    if args.alpaca_eval.is_none() {
        return Ok(());
    }
    let models = args.adapter.len().max(1) + usize::from(args.baseline);
    ensure_valid!(models == 1, "--alpaca-eval holds the answers of one model, but {models} are measured");
    let answered = |evaluation: &Evaluation| evaluation.metric() != Metric::Loss;
    ensure_valid!(
        evaluations.len() == 1 && evaluations.iter().all(answered),
        "--alpaca-eval holds the answers of one evaluation that asks prompts, such as --metric refusal; there are {} here, {} of which ask",
        evaluations.len(),
        evaluations.iter().filter(|evaluation| answered(evaluation)).count()
    );
    Ok(())
}

/// The answers of the only model and evaluation in AlpacaEval's layout.
fn exported(args: &EvalArgs, rows: &[Row], instructions: &[String]) -> Result<String> {
    let adapter = args.adapter.first().map(PathBuf::as_path);
    let generator = args.generator.clone().unwrap_or_else(|| generator(&args.base.model, adapter));
    let outcomes = rows.iter().flat_map(|(_, outcomes)| outcomes);
    let answers = outcomes.flat_map(|outcome| {
        outcome.samples.iter().zip(instructions).map(|(sample, instruction)| {
            let output = sample.get("answer").and_then(Json::as_str).unwrap_or_default();
            Answer::new(sample, (instruction, output), (&generator, &outcome.title))
        })
    });
    alpaca_eval::file(&answers.collect::<Vec<_>>())
}

/// What the options ask for: an evaluation for each metric.
fn evaluations(args: &EvalArgs) -> Result<Vec<Evaluation>> {
    let metrics: Vec<Option<Metric>> =
        if args.metric.is_empty() { vec![None] } else { args.metric.iter().copied().map(Some).collect() };
    let evaluation = |metric: Option<Metric>| {
        let evaluation = Evaluation {
            name: String::new(),
            data: args.data.clone().unwrap_or_default(),
            metric,
            preset: args.preset,
            format: args.format,
            columns: Columns::default(),
            template: args.template.clone(),
            template_variables: TemplateVariables::parse(&args.template_variable)?,
            limit: args.limit,
            max_length: args.max_length,
            max_new_tokens: args.max_new_tokens,
            matching: args.r#match,
            reference: args.reference.clone(),
            labels: args.labels.clone(),
            marker: args.marker.clone(),
            phrases: args.phrases.clone(),
            phrases_within: args.phrases_within,
            system: args.system.clone(),
            prefix: args.prefix.clone(),
            suffix: args.suffix.clone(),
            prefill: args.prefill.clone(),
            judge: args.judge.clone(),
            judge_preset: args.judge_preset,
            ..Default::default()
        }
        .resolved();
        let fields = if evaluation.metric() == Metric::Loss { args.format.fields() } else { &PROMPT_FIELDS[..] };
        let columns = Columns::parse(&args.column, fields)?;
        let evaluation = Evaluation { columns, ..evaluation };
        evaluation.validate()?;
        Ok(evaluation)
    };
    metrics.into_iter().map(evaluation).collect()
}

type Row = (String, Vec<Outcome>);

/// One model: the values of its only evaluation on a line, or those of several below one another.
fn listing(outcomes: &[Outcome]) -> String {
    let named = |(name, value): &(&str, Value)| (name.replace('_', " "), value.text());
    if let [outcome] = outcomes {
        let values: Vec<String> =
            outcome.values.iter().map(named).map(|(name, value)| format!("{name} {value}")).collect();
        return values.join("  ") + "\n";
    }
    let lines = outcomes.iter().flat_map(|outcome| {
        outcome.values.iter().map(named).enumerate().map(|(i, (name, value))| {
            let name = if i == 0 { outcome.title.clone() } else { format!("  {name}") };
            (name, value)
        })
    });
    let lines: Vec<(String, String)> = lines.collect();
    let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    lines.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

/// Several models: a row for each, a column for each value.
fn table(rows: &[Row]) -> String {
    let readings =
        |outcomes: &[Outcome]| -> Vec<(String, Value)> { outcomes.iter().flat_map(Outcome::readings).collect() };
    let names = rows.first().map_or(vec![], |(_, outcomes)| readings(outcomes));
    let mut table = Table::new(["model".to_string()].into_iter().chain(names.into_iter().map(|(name, _)| name)));
    for (model, outcomes) in rows {
        let values = readings(outcomes).into_iter().map(|(_, value)| value.text());
        table.push([model.clone()].into_iter().chain(values));
    }
    table.on_screen()
}

/// A list of models, each with its evaluations; the same for one of each.
fn report(rows: &[Row]) -> Json {
    let model = |(model, outcomes): &Row| {
        let evaluations: Vec<Evaluated> = outcomes.iter().map(Outcome::evaluated).collect();
        json!({"model": model, "evaluations": evaluations})
    };
    json!({"models": rows.iter().map(model).collect::<Vec<_>>()})
}

/// Every sample as a line of JSON, with the model and the evaluation that it belongs to.
fn samples(rows: &[Row]) -> String {
    let mut text = String::new();
    for (model, outcomes) in rows {
        for outcome in outcomes {
            for sample in &outcome.samples {
                let mut line = Map::from_iter([
                    ("model".to_string(), json!(model)),
                    ("evaluation".to_string(), json!(outcome.title)),
                ]);
                line.extend(sample.clone());
                let _ = writeln!(text, "{}", restored(&Json::Object(line).to_string()));
            }
        }
    }
    text
}

//! `asft data`

use super::{print, standard_output};
use crate::cli::DataArgs;
use crate::config::Settings;
use crate::data::{self, Dataset, Loading, Marks, Summary, epoch_order, predicted_labels};
use crate::hub;
use crate::tokenizer::Tokenizer;
use crate::train::{Inputs, Problems, Sources};
use anyhow::Result;
use indicatif::ProgressBar;
use serde_json::json;
use std::io::{IsTerminal, Write, stdout};

pub fn run(args: DataArgs) -> Result<()> {
    let settings = Settings::load_for_data(&args.config, &args.set)?;
    let mut problems = Problems::default();
    let sources = Sources::find(&settings, hub::resolve_without_weights, &mut problems);
    let spec = sources.spec(&mut problems);
    let inputs = spec.as_ref().and_then(|spec| sources.read(&settings, spec, &mut problems));
    let (Some(base), Some(files), Some(spec), Some(inputs)) = (sources.base, sources.data, spec, inputs) else {
        return Err(problems.into_error("the datasets cannot be used"));
    };
    let Inputs { tokenizer, train, validation, .. } = inputs;
    let tokenizer = match tokenizer {
        // Samples that are tokenized already can be shown without one, but not as text.
        None if base.has_tokenizer() => Some(base.load_tokenizer()?),
        tokenizer => tokenizer,
    };
    let count = train.len();
    let order = epoch_order(count, args.seed.unwrap_or(0), 0, args.seed.is_some());
    let chosen: Vec<usize> = order.into_iter().take(args.show).collect();
    let loading = Loading {
        tokenizer: tokenizer.as_ref(),
        vocab_size: spec.vocab_size,
        cache: None,
        progress: &ProgressBar::hidden,
    };
    let why = |index: usize| loading.explain(&files, &settings.data, &train, index);
    if args.json {
        return print_json(&train, validation.as_ref(), &chosen, tokenizer.as_ref(), why);
    }
    let mut out = standard_output();
    writeln!(out, "training samples\n{}", Summary::of(&train))?;
    if let Some(validation) = &validation {
        writeln!(out, "validation samples\n{}", Summary::of(validation))?;
    }
    for index in chosen {
        let example = &train.example(index)?;
        let (tokens, labels) = (example.input_ids.len(), predicted_labels(&example.labels));
        let origin = train.origin(index);
        writeln!(out, "sample {} of {count} ({origin}): {tokens} tokens, {labels} labels", index + 1)?;
        writeln!(out, "{}", data::highlight(example, tokenizer.as_ref(), marks(), args.tokens)?)?;
        for line in why(index)? {
            writeln!(out, "  {line}")?;
        }
        writeln!(out)?;
    }
    Ok(out.flush()?)
}

/// Colours on a terminal, unless NO_COLOR is set (https://no-color.org).
fn marks() -> Marks {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if stdout().is_terminal() && !unwanted { Marks::Colour } else { Marks::Brackets }
}

fn print_json(
    train: &Dataset,
    validation: Option<&Dataset>,
    chosen: &[usize],
    tokenizer: Option<&Tokenizer>,
    why: impl Fn(usize) -> Result<Vec<String>>,
) -> Result<()> {
    let mut samples = vec![];
    for &index in chosen {
        let example = train.example(index)?;
        let text = tokenizer.map(|tokenizer| tokenizer.decode(&example.input_ids, false)).transpose()?;
        samples.push(json!({
            "origin": train.origin(index),
            "text": text,
            "input_ids": example.input_ids,
            "labels": example.labels,
            "why": why(index)?,
        }));
    }
    let validation = validation.map(Summary::of);
    let report = json!({"train": Summary::of(train), "validation": validation, "samples": samples});
    print(&format!("{report}\n"))
}

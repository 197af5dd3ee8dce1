//! What a run leaves behind: a PEFT adapter, or a whole model.

use super::checkpoint::{Checkpoints, restore_trained};
use super::output::{OutputFolder, remove};
use super::trained::{Trained, card};
use crate::adapter;
use crate::checkpoint::rewrite;
use crate::config::Settings;
use crate::console::progress_bar;
use crate::data::{DataOptions, Listed, Source};
use crate::train::options::Tuning;
use anyhow::{Context, Result};
use candle_core::DType;
use std::path::Path;

/// Makes the model what would have been exported after step `best`, of which there is a checkpoint.
pub fn go_back(settings: &Settings, trained: &mut Trained, output: &OutputFolder, best: usize) -> Result<()> {
    let dir = Checkpoints::new(output, settings).path(best);
    restore_trained(&dir, trained).and_then(|_| trained.trainer.exchange()).context("loading the best checkpoint")
}

/// Writes the result of a run: the present state, which is that after `step`.
pub fn result(settings: &Settings, trained: &Trained, output: &OutputFolder, step: usize) -> Result<()> {
    let method = settings.train.method;
    let dir = output.result(method);
    remove(&dir)?;
    match method {
        Tuning::Lora => adapter(settings, trained, step, &dir),
        Tuning::Full => model(trained, &dir),
    }
}

/// Writes the adapter as trained up to `step` to `dir`, and reads it back to compare.
fn adapter(settings: &Settings, trained: &Trained, step: usize, dir: &Path) -> Result<()> {
    let adapter = trained.adapter.as_ref().context("no adapter was trained")?;
    let mut adapter = adapter.with_values(trained.parameters())?;
    adapter.layout = settings.export.layout.unwrap_or(adapter.layout);
    let adapter = if settings.export.fold_scale { adapter.folded()? } else { adapter };
    let asft = &settings.asft;
    let direction = match (&asft.direction, &settings.model.unaligned) {
        _ if !(asft.is_active() && asft.needs_direction()) => "not used".to_string(),
        (Some(file), _) => file.clone(),
        (None, unaligned) => format!("from {}", unaligned.as_deref().unwrap_or("nothing")),
    };
    let variables = &settings.data.template_variables;
    let variables = (!variables.is_empty()).then(|| ("template variables", variables.to_string()));
    let mix = (asft.input_mix > 0.0).then(|| ("input_mix", asft.input_mix.to_string()));
    let rows = [
        ("lambda", asft.lambda.to_string()),
        ("penalize", asft.penalize.to_string()),
        ("projector", asft.projector.to_string()),
        ("direction", direction),
        ("defence", settings.defence.kind.to_string()),
        ("modules", adapter.modules.len().to_string()),
        ("dataset", dataset(&settings.data)),
        ("steps", step.to_string()),
        ("learning rate", settings.train.learning_rate.to_string()),
    ];
    let rows: Vec<(&str, String)> = rows.into_iter().chain(mix).chain(variables).collect();
    let card = card(&adapter, asft.penalize, &rows);
    adapter::save(&adapter, trained.trainer.model.spec(), &trained.checkpoint, &card, dir)
}

/// Every source of training samples, with how much of it was taken.
fn dataset(data: &DataOptions) -> String {
    let one = |listed: Listed| match listed.source {
        Source { path, share: Some(share), .. } => format!("{path} (a share of {share})"),
        Source { path, count: Some(count), .. } => format!("{path} ({count} samples)"),
        Source { path, .. } => path,
    };
    data.sources().into_iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Writes the trained model to `dir` as an ordinary Hugging Face checkpoint in f32.
fn model(trained: &Trained, dir: &Path) -> Result<()> {
    let progress = progress_bar(0, "saving model");
    let tensor = |name: &str| Ok(trained.tensor(name));
    rewrite(&trained.base.place, &trained.checkpoint, dir, Some(DType::F32), tensor, &progress)?;
    progress.finish_and_clear();
    Ok(())
}

//! What a run leaves behind: a PEFT adapter, or a whole model.

use super::prepare::Prepared;
use crate::adapter::{self, model_card};
use crate::checkpoint::rewrite;
use crate::config::Settings;
use crate::report::progress_bar;
use anyhow::{Context, Result};
use candle_core::DType;
use std::path::{Path, PathBuf};

/// Writes the adapter as trained up to `step` to `dir` and reads it back to compare.
pub fn adapter(settings: &Settings, prepared: &Prepared, step: usize, dir: &Path) -> Result<PathBuf> {
    let adapter = prepared.adapter.as_ref().context("no adapter was trained")?;
    let model = &prepared.trainer.model;
    let trained = adapter.with_values(model.parameters())?;
    let asft = &settings.asft;
    let rows = [
        ("lambda", asft.lambda.to_string()),
        ("penalize", format!("{:?}", asft.penalize).to_lowercase()),
        ("projector", format!("{:?}", asft.projector).to_lowercase()),
        ("direction: unaligned model", settings.model.unaligned.clone().unwrap_or_else(|| "from a file".into())),
        ("modules", trained.modules.len().to_string()),
        ("dataset", settings.data.train.clone()),
        ("steps", step.to_string()),
        ("learning rate", settings.train.learning_rate.to_string()),
    ];
    adapter::save(&trained, model.spec(), &prepared.checkpoint, &model_card(&trained, &rows), dir)?;
    Ok(dir.to_path_buf())
}

/// Writes the trained model to `dir` as an ordinary Hugging Face checkpoint in f32.
pub fn model(prepared: &Prepared, dir: &Path) -> Result<PathBuf> {
    let parameters = prepared.trainer.model.parameters();
    let trained = |name: &str| Ok(parameters.get(name).map(|var| var.as_detached_tensor()));
    let progress = progress_bar(0, "saving model");
    rewrite(&prepared.base.dir, &prepared.checkpoint, dir, Some(DType::F32), trained, &progress)?;
    progress.finish_and_clear();
    Ok(dir.to_path_buf())
}

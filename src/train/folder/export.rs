//! What a run leaves behind: a PEFT adapter, or a whole model.

use crate::adapter::{self, model_card};
use crate::checkpoint::rewrite;
use crate::config::Settings;
use crate::console::progress_bar;
use crate::method::Penalize;
use crate::train::before::prepare::Prepared;
use anyhow::{Context, Result};
use candle_core::{DType, Tensor};
use std::path::{Path, PathBuf};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Writes the adapter as trained up to `step` to `dir` and reads it back to compare.
pub fn adapter(settings: &Settings, prepared: &Prepared, step: usize, dir: &Path) -> Result<PathBuf> {
    let adapter = prepared.adapter.as_ref().context("no adapter was trained")?;
    let model = &prepared.trainer.model;
    let trained = adapter.with_values(model.parameters())?;
    let asft = &settings.asft;
    let direction = match (&asft.direction, &settings.model.unaligned) {
        _ if !(asft.is_active() && asft.needs_direction()) => "not used".to_string(),
        (Some(file), _) => file.clone(),
        (None, unaligned) => format!("from {}", unaligned.as_deref().unwrap_or("nothing")),
    };
    let rows = [
        ("lambda", asft.lambda.to_string()),
        ("penalize", asft.penalize.to_string()),
        ("projector", asft.projector.to_string()),
        ("direction", direction),
        ("defence", settings.defence.kind.to_string()),
        ("modules", trained.modules.len().to_string()),
        ("dataset", settings.data.train.clone()),
        ("steps", step.to_string()),
        ("learning rate", settings.train.learning_rate.to_string()),
    ];
    let card = model_card(&trained, objective(asft.penalize), &rows);
    adapter::save(&trained, model.spec(), &prepared.checkpoint, &card, dir)?;
    Ok(dir.to_path_buf())
}

/// What the loss was, for the model card.
pub fn objective(penalize: Penalize) -> &'static str {
    match penalize {
        Penalize::Orthogonal => {
            "with [AsFT](https://arxiv.org/abs/2506.08473) (anchoring safety during fine-tuning) the loss carries a \
             penalty on the part of each update that leaves the model's alignment direction"
        }
        Penalize::OrthogonalReverse => {
            "with [AsFT](https://arxiv.org/abs/2506.08473) (anchoring safety during fine-tuning) the loss carries a \
             penalty on the part of each update that leaves the model's alignment direction, and here also on what moves \
             against it"
        }
        Penalize::Aligned => {
            "the loss carries a penalty on the part of each update along the model's alignment direction, the ablation \
             of [AsFT](https://arxiv.org/abs/2506.08473)"
        }
        Penalize::All => {
            "the loss carries a penalty on the size of each update (plain shrinkage, no alignment direction)"
        }
        Penalize::None => "plain fine-tuning, without a penalty",
    }
}

/// Writes the trained model to `dir` as an ordinary Hugging Face checkpoint in f32.
pub fn model(prepared: &Prepared, dir: &Path) -> Result<PathBuf> {
    let progress = progress_bar(0, "saving model");
    let trained = |name: &str| Ok(trained(prepared, name));
    rewrite(&prepared.base.dir, &prepared.checkpoint, dir, Some(DType::F32), trained, &progress)?;
    progress.finish_and_clear();
    Ok(dir.to_path_buf())
}

/// What full tuning made of a tensor of the base.
pub fn trained(prepared: &Prepared, name: &str) -> Option<Tensor> {
    let model = &prepared.trainer.model;
    // A tied head may be stored all the same; left as it was, transformers would untie the two.
    let name = if model.spec().tie_word_embeddings && name == HEAD { EMBEDDING } else { name };
    model.parameters().get(name).map(|var| var.as_detached_tensor())
}

//! Granite: a Llama with factors of the embeddings, the attention scores, the residual branches and the logits.

use super::base::{LLAMA, common, read_biases};
use super::refused::refuse_unsupported;
use crate::model::config_json::Config;
use crate::model::spec::ModelSpec;
use anyhow::Result;

pub fn granite(config: &Config) -> Result<ModelSpec> {
    let multipliers = ["embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"];
    refuse_unsupported(config, &[&["attention_bias", "mlp_bias"][..], &multipliers].concat())?;
    let mut spec = common(config, &LLAMA)?;
    read_biases(config, &mut spec)?;
    let factor = |key: &str| Ok::<_, anyhow::Error>(config.number(key)?.unwrap_or(1.0));
    let unless_one = |factor: f64| Some(factor).filter(|&factor| factor != 1.0);
    spec.embedding_scale = unless_one(factor("embedding_multiplier")?);
    // Without the field it is 1, not 1 / √head_dim.
    spec.attention_scale = factor("attention_multiplier")?;
    spec.residual_scale = unless_one(factor("residual_multiplier")?);
    spec.logit_scale = unless_one(1.0 / factor("logits_scaling")?);
    Ok(spec)
}

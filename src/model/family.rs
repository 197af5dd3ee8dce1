//! `config.json` -> [`ModelSpec`], family by family.
//!
//! Reads the dialects of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`). Defaults are those of
//! transformers' config classes. An unsupported field that would change the maths is refused by name; nothing is
//! guessed.

use super::config_json::Config;
use super::rope::RopeScaling;
use super::spec::{Heads, ModelSpec};
use crate::checkpoint::{Checkpoint, is_gguf, model_config};
use crate::console::log;
use crate::names::HEAD;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde_json::json;
use std::path::Path;
use std::sync::Once;

const SUPPORTED: &str = "llama (Llama 2 and 3, SmolLM2), mistral, ministral3, qwen2 (Qwen2 and 2.5), qwen3, qwen3_moe, qwen3_5_text, qwen3_5_moe_text, gemma2, \
                         gemma3_text, gemma4_text, smollm3, granite, phi3 (Phi-3 and 4), glm4, olmo2, olmo3, and the text models of gemma3, gemma4, mistral3, \
                         qwen3_vl, qwen3_5 and qwen3_5_moe";

impl ModelSpec {
    /// Reads `config.json` in a checkpoint folder, or what a GGUF file says in its place; of a multimodal class only the text
    /// model. If the folder has weights with a head that differs from the embedding, the two are not tied, whatever
    /// `config.json` says.
    ///
    /// # Errors
    /// A missing or malformed file, an unsupported `model_type`, or an unsupported field, named.
    pub fn load(place: &Path) -> Result<Self> {
        let (fields, origin) = model_config(place)?;
        let mut spec = parse(&Config { fields: &fields, origin: origin.display().to_string() })?;
        // Weights that are missing or malformed are left to whoever loads them; a GGUF file says by its tensors what it ties.
        if spec.tie_word_embeddings
            && !is_gguf(place)
            && let Ok(checkpoint) = Checkpoint::open(place)
            && checkpoint.has_own_head()?
        {
            tell_untied(place);
            spec.tie_word_embeddings = false;
        }
        Ok(spec)
    }

    /// Whether there is a multimodal class with such a text model.
    pub fn has_wrapper(&self) -> bool {
        self.wrapped || wrapper::has(&self.model_type)
    }
}

/// Warns once that the tie does not hold.
fn tell_untied(place: &Path) {
    static TOLD: Once = Once::new();
    let text = format!(
        "{} ties the output head to the embedding, but {HEAD} of the weights differs from it and is used, as in transformers",
        place.display()
    );
    TOLD.call_once(|| log::warn(&text, json!({"model": place})));
}

fn parse(config: &Config) -> Result<ModelSpec> {
    let Some(fields) = wrapper::text_fields(config)? else { return text_model(config) };
    let text = Config { fields: &fields, origin: format!("{}: text_config", config.origin) };
    Ok(ModelSpec { wrapped: true, ..text_model(&text)? })
}

fn text_model(config: &Config) -> Result<ModelSpec> {
    let model_type = config.string("model_type")?.unwrap_or_default();
    let spec = match model_type {
        "llama" => llama::llama(config),
        "mistral" => llama::mistral(config),
        "qwen2" => qwen::qwen(config, false),
        "ministral3" => ministral3::ministral3(config),
        "qwen3" => qwen::qwen(config, true),
        "qwen3_moe" => qwen::qwen3_moe(config),
        "qwen3_5_text" => qwen3_5::qwen3_5(config),
        "qwen3_5_moe_text" => qwen3_5::qwen3_5_moe(config),
        "qwen3_vl_text" => qwen::qwen3_vl(config),
        "gemma2" => gemma::gemma(config, false),
        "gemma3_text" => gemma::gemma(config, true),
        "gemma4_text" => gemma4::gemma4(config),
        "smollm3" => smollm3::smollm3(config),
        "granite" => granite::granite(config),
        "olmo2" => olmo::olmo2(config),
        "olmo3" => olmo::olmo3(config),
        "phi3" => phi3::phi3(config),
        "glm4" => glm4::glm4(config),
        "qwen3_next" => Err(invalid!(
            "{}: model_type `qwen3_next` is not supported: its gated DeltaNets have q, k, v and z in one projection, head by head, and b \
             and a in another; use a Qwen3.5 (qwen3_5, qwen3_5_moe), which has each by itself",
            config.origin
        )),
        "" => Err(config.missing("model_type")),
        other => Err(invalid!("{}: model_type `{other}` is not supported; supported: {SUPPORTED}", config.origin)),
    }?;
    check(config, &spec)?;
    Ok(spec)
}

/// Sizes that have to fit together.
fn check(config: &Config, spec: &ModelSpec) -> Result<()> {
    for number in 0..spec.num_hidden_layers {
        let Heads { kv_heads, head_dim } = spec.heads(number);
        ensure_valid!(
            spec.num_attention_heads.is_multiple_of(kv_heads),
            "{}: num_attention_heads ({}) is not a multiple of num_key_value_heads ({kv_heads})",
            config.origin,
            spec.num_attention_heads
        );
        ensure_valid!(head_dim.is_multiple_of(2), "{}: head_dim {head_dim} is odd", config.origin);
        let turned = spec.layers[number].rope.map_or(head_dim, |rope| spec.turned_head_dim(rope));
        ensure_valid!(
            turned == head_dim,
            "{}: layer {number} has heads of {head_dim} values, others of its type heads of {turned}; expected one size",
            config.origin
        );
    }
    for (number, rope) in spec.ropes.iter().enumerate() {
        let pairs = rope.heads(spec.turned_head_dim(number)).rotary_dim / 2;
        ensure_valid!(
            rope.partial > 0.0 && rope.partial <= 1.0 && pairs > 0,
            "{}: partial_rotary_factor is {}; expected more than 0 and at most 1, and at least one value of a head",
            config.origin,
            rope.partial
        );
        let RopeScaling::LongRope { short_factor, long_factor, .. } = &rope.scaling else { continue };
        ensure_valid!(
            short_factor.len() == pairs && long_factor.len() == pairs,
            "{}: short_factor and long_factor hold {} and {} values, expected {pairs}, half of what is rotated of a head",
            config.origin,
            short_factor.len(),
            long_factor.len()
        );
    }
    Ok(())
}

mod base;
mod gemma;
mod gemma4;
mod glm4;
mod granite;
mod layer_types;
mod llama;
mod ministral3;
mod olmo;
mod phi3;
mod quantisation;
mod qwen;
mod qwen3_5;
mod refused;
mod ropes;
mod smollm3;
mod windows;
mod wrapper;

#[cfg(test)]
mod tests;

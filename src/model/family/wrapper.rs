//! Multimodal classes, of which only the text model is served: `text_config` with the class's defaults for absent fields.

use super::quantisation;
use crate::ensure_valid;
use crate::model::config_json::Config;
use anyhow::Result;
use serde_json::{Map, Value, json};

/// A multimodal class.
struct Wrapper {
    model_type: &'static str,
    /// The types of its text model; the first where `text_config` names none.
    texts: &'static [&'static str],
    /// Whether the head is the embedding where the config does not say: only what stands outside `text_config` counts.
    tied: bool,
}

const WRAPPERS: [Wrapper; 6] = [
    Wrapper { model_type: "gemma3", texts: &["gemma3_text"], tied: true },
    Wrapper { model_type: "gemma4", texts: &["gemma4_text"], tied: true },
    Wrapper { model_type: "mistral3", texts: &["mistral", "ministral3"], tied: true },
    Wrapper { model_type: "qwen3_vl", texts: &["qwen3_vl_text"], tied: false },
    Wrapper { model_type: "qwen3_5", texts: &["qwen3_5_text"], tied: false },
    Wrapper { model_type: "qwen3_5_moe", texts: &["qwen3_5_moe_text"], tied: false },
];

/// Whether a class has text models of this type.
pub fn has(text_type: &str) -> bool {
    WRAPPERS.iter().any(|wrapper| wrapper.texts.contains(&text_type))
}

/// The fields of the text model in a multimodal class's config; `None` for other classes.
///
/// # Errors
/// A text model that the class does not have; weights quantised in a way that cannot be read.
pub fn text_fields(config: &Config) -> Result<Option<Map<String, Value>>> {
    let model_type = config.string("model_type")?.unwrap_or_default();
    let Some(wrapper) = WRAPPERS.iter().find(|wrapper| wrapper.model_type == model_type) else { return Ok(None) };
    quantisation::check(config)?;
    let written = config.object("text_config")?;
    let named = written.as_ref().map(|text| text.string("model_type")).transpose()?.flatten();
    let text_type = named.or(wrapper.texts.first().copied()).unwrap_or_default();
    ensure_valid!(
        wrapper.texts.contains(&text_type),
        "{}: text_config: model_type `{text_type}` is not supported in a {model_type}; supported: {}",
        config.origin,
        wrapper.texts.join(", ")
    );
    let mut fields = match written {
        Some(text) => text.fields.clone(),
        None if model_type == "mistral3" => object(json!({
            "head_dim": 128, "hidden_size": 5120, "intermediate_size": 32768, "max_position_embeddings": 131_072,
            "num_hidden_layers": 40, "rms_norm_eps": 1e-5, "rope_theta": 1e9, "sliding_window": null, "vocab_size": 131_072,
        })),
        None => Map::new(),
    };
    for (key, value) in sizes(text_type) {
        fields.entry(key).or_insert(value);
    }
    let tied = config.flag("tie_word_embeddings")?.unwrap_or(wrapper.tied);
    fields.insert("tie_word_embeddings".to_string(), tied.into());
    fields.insert("model_type".to_string(), text_type.into());
    Ok(Some(fields))
}

/// What a text model's class has in place of absent sizes.
fn sizes(text_type: &str) -> Map<String, Value> {
    let [vocab_size, hidden_size, intermediate_size, layers, heads] = match text_type {
        "gemma3_text" => [262_208, 2304, 9216, 26, 8],
        "gemma4_text" => [262_144, 2304, 9216, 30, 8],
        "ministral3" => [131_072, 4096, 14336, 34, 32],
        "qwen3_vl_text" => [151_936, 4096, 22016, 32, 32],
        "qwen3_5_text" => [248_320, 4096, 12288, 32, 16],
        "qwen3_5_moe_text" => [248_320, 2048, 512, 40, 16],
        _ => [32_000, 4096, 14336, 32, 32],
    };
    object(json!({
        "vocab_size": vocab_size, "hidden_size": hidden_size, "intermediate_size": intermediate_size,
        "num_hidden_layers": layers, "num_attention_heads": heads,
    }))
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

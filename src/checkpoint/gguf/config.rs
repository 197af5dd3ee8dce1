//! A GGUF file's metadata as the `config.json` that transformers would have for its model.

use super::facts::Facts;
use super::header::Header;
use super::value::Value as Found;
use crate::quant::ggml::GgmlType;
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// Keys that would change the maths, and that no family here reads.
const REFUSED: [&str; 14] = [
    "expert_count",
    "attention.max_alibi_bias",
    "attention.clamp_kqv",
    "attention.q_lora_rank",
    "attention.kv_lora_rank",
    "attention.shared_kv_layers",
    "attention.value_length_swa",
    "attention.temperature_scale",
    "logit_scale",
    "residual_scale",
    "embedding_scale",
    "rope.dimension_sections",
    "rope.scaling.yarn_log_multiplier",
    "rope.scaling.yarn_ext_factor",
];
/// The number of layers of Gemma 2 and 3 of 27B, whose attention is scaled by hidden_size / heads rather than head_dim.
const SCALED_BY_WIDTH: [(&str, usize); 2] = [("gemma2", 46), ("gemma3", 62)];

/// The fields of a `config.json`.
///
/// # Errors
/// As [`Facts::of`]; metadata that are missing, of a wrong type, or that nothing here can do justice to.
pub fn model_config(header: &Header) -> Result<Map<String, Value>> {
    let read = || {
        let facts = Facts::of(header)?;
        refuse_unsupported(&facts)?;
        let mut config = common(&facts)?;
        match facts.family.architecture {
            "llama" => llama(&facts, &mut config)?,
            "qwen3" => set_if(&mut config, "attention_bias", has_tensor(&facts, "blk.0.attn_q.bias")),
            "gemma2" | "gemma3" => gemma(&facts, &mut config)?,
            _ => {}
        }
        Ok(config)
    };
    read().map_err(|e: anyhow::Error| e.context(format!("{} cannot be used as a model", header.path.display())))
}

fn has_tensor(facts: &Facts, name: &str) -> bool {
    facts.header.entry(name).is_some()
}

fn set_if(config: &mut Map<String, Value>, key: &str, flag: bool) {
    if flag {
        config.insert(key.to_string(), json!(true));
    }
}

fn refuse_unsupported(facts: &Facts) -> Result<()> {
    for key in REFUSED {
        let neutral = match facts.get(key) {
            None | Some(Found::Whole(0)) => true,
            Some(Found::Float(number)) => *number == 0.0 && key != "attention.temperature_scale",
            Some(_) => false,
        };
        ensure_valid!(neutral, "{} = {:?} is not supported", facts.key(key), facts.get(key));
    }
    let causal = !matches!(facts.get("attention.causal"), Some(Found::Flag(false)));
    ensure_valid!(causal, "{} is false: a model that looks ahead is not supported", facts.key("attention.causal"));
    let head_dim = facts.head_dim()?;
    for key in ["attention.value_length", "rope.dimension_count"] {
        let size = facts.size(key)?.unwrap_or(head_dim);
        ensure_valid!(size == head_dim, "{} is {size}, expected the head's size, {head_dim}", facts.key(key));
    }
    Ok(())
}

/// What all families share.
fn common(facts: &Facts) -> Result<Map<String, Value>> {
    let embedding = facts.header.entry("token_embd.weight");
    let vocab_size = embedding.and_then(|entry| entry.shape.first());
    let vocab_size = vocab_size.ok_or_else(|| invalid!("it has no tensor token_embd.weight"))?;
    let eps = facts.number("attention.layer_norm_rms_epsilon")?;
    let eps = eps.ok_or_else(|| invalid!("the metadata have no {}", facts.key("attention.layer_norm_rms_epsilon")))?;
    let mut config = Map::new();
    let fields = [
        ("architectures", json!([facts.family.class])),
        ("model_type", json!(facts.family.model_type)),
        ("vocab_size", json!(vocab_size)),
        ("hidden_size", json!(facts.required_size("embedding_length")?)),
        ("intermediate_size", json!(facts.required_size("feed_forward_length")?)),
        ("num_hidden_layers", json!(facts.required_size("block_count")?)),
        ("num_attention_heads", json!(facts.heads()?)),
        ("num_key_value_heads", json!(facts.kv_heads()?)),
        ("head_dim", json!(facts.head_dim()?)),
        ("max_position_embeddings", json!(facts.required_size("context_length")?)),
        ("rms_norm_eps", json!(eps)),
        ("tie_word_embeddings", json!(!has_tensor(facts, "output.weight"))),
    ];
    config.extend(fields.map(|(key, value)| (key.to_string(), value)));
    for key in ["bos_token_id", "eos_token_id"] {
        if let Some(Found::Whole(id)) = facts.header.metadata.get(&format!("tokenizer.ggml.{key}")) {
            config.insert(key.to_string(), json!(id));
        }
    }
    if let Some(theta) = facts.number("rope.freq_base")? {
        config.insert("rope_theta".to_string(), json!(theta));
    }
    if let Some(scaling) = rope_scaling(facts)? {
        config.insert("rope_scaling".to_string(), scaling);
    }
    Ok(config)
}

/// `rope_scaling`, from the metadata or from the factors that Llama 3.1's scaling is stored as.
fn rope_scaling(facts: &Facts) -> Result<Option<Value>> {
    // Older files give a factor without a type.
    let kind = facts.text("rope.scaling.type")?.unwrap_or("linear");
    let factor = facts.number("rope.scaling.factor")?.or(facts.number("rope.scale_linear")?);
    let context = facts.required_size("context_length")?;
    let scaling = match (kind, factor) {
        ("none", _) | ("linear", None) => None,
        // Where there is none, some give 0 or 1.
        ("linear", Some(factor)) => {
            (factor != 0.0 && factor != 1.0).then(|| json!({"rope_type": "linear", "factor": factor}))
        }
        ("yarn", Some(factor)) => Some(yarn(facts, factor)?),
        _ => return Err(invalid!("{} `{kind}` is not supported", facts.key("rope.scaling.type"))),
    };
    let Some(factors) = rope_factors(facts)? else { return Ok(scaling) };
    ensure_valid!(
        scaling.is_none() && facts.family.architecture != "gemma3",
        "tensor rope_freqs.weight beside another scaling is not supported"
    );
    if factors.iter().all(|factor| *factor == 1.0) {
        return Ok(None);
    }
    Ok(Some(json!({
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "attention_factor": 1.0,
        "original_max_position_embeddings": context,
    })))
}

fn yarn(facts: &Facts, factor: f64) -> Result<Value> {
    let mut scaling = Map::new();
    scaling.insert("rope_type".to_string(), json!("yarn"));
    scaling.insert("factor".to_string(), json!(factor));
    let own = [
        ("rope.scaling.original_context_length", "original_max_position_embeddings"),
        ("rope.scaling.yarn_beta_fast", "beta_fast"),
        ("rope.scaling.yarn_beta_slow", "beta_slow"),
    ];
    for (key, field) in own {
        scaling.extend(facts.number(key)?.map(|value| (field.to_string(), json!(value))));
    }
    for key in ["rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"] {
        let neutral = facts.number(key)?.is_none_or(|factor| factor == 1.0);
        ensure_valid!(neutral, "{} = {:?} is not supported", facts.key(key), facts.get(key));
    }
    Ok(Value::Object(scaling))
}

/// By how much each rotary frequency is divided: rope_freqs.weight, [head_dim / 2].
fn rope_factors(facts: &Facts) -> Result<Option<Vec<f64>>> {
    let Some(entry) = facts.header.entry("rope_freqs.weight") else { return Ok(None) };
    let expected = facts.head_dim()? / 2;
    ensure_valid!(
        entry.kind == GgmlType::F32 && entry.shape == [expected],
        "tensor rope_freqs.weight is {} of {:?}, expected F32 of [{expected}]",
        entry.kind.name(),
        entry.shape
    );
    let path = &facts.header.path;
    let reading = || format!("reading tensor rope_freqs.weight from {}", path.display());
    let mut file = File::open(path).with_context(reading)?;
    file.seek(SeekFrom::Start(entry.start)).with_context(reading)?;
    let mut bytes = vec![0; 4 * expected];
    file.read_exact(&mut bytes).with_context(reading)?;
    let factors: Vec<f64> = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect();
    ensure_valid!(
        factors.iter().all(|factor| factor.is_finite() && *factor > 0.0),
        "tensor rope_freqs.weight holds values that are not positive"
    );
    Ok(Some(factors))
}

/// Mistral is a Llama, with a sliding window in its first version.
fn llama(facts: &Facts, config: &mut Map<String, Value>) -> Result<()> {
    if let Some(window) = facts.size("attention.sliding_window")? {
        config.insert("architectures".to_string(), json!(["MistralForCausalLM"]));
        config.insert("model_type".to_string(), json!("mistral"));
        config.insert("sliding_window".to_string(), json!(window));
    }
    set_if(config, "attention_bias", has_tensor(facts, "blk.0.attn_q.bias"));
    set_if(config, "mlp_bias", has_tensor(facts, "blk.0.ffn_up.bias"));
    Ok(())
}

fn gemma(facts: &Facts, config: &mut Map<String, Value>) -> Result<()> {
    let (layers, architecture) = (facts.required_size("block_count")?, facts.family.architecture);
    let scale = match facts.number("attention.scale")? {
        Some(scale) if scale > 0.0 => scale.powi(-2),
        _ if SCALED_BY_WIDTH.contains(&(architecture, layers)) => {
            facts.required_size("embedding_length")? as f64 / facts.heads()? as f64
        }
        _ => facts.head_dim()? as f64,
    };
    config.insert("query_pre_attn_scalar".to_string(), json!(scale));
    // Of what is absent llama.cpp has the same defaults as transformers.
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        config.extend(facts.number(key)?.map(|cap| (key.to_string(), json!(cap))));
    }
    let window = facts.size("attention.sliding_window")?;
    config.extend(window.map(|window| ("sliding_window".to_string(), json!(window))));
    if architecture == "gemma3" {
        ensure_valid!(window.is_some(), "the metadata have no {}", facts.key("attention.sliding_window"));
        let local = facts.number("rope.freq_base_swa")?.unwrap_or(10_000.0);
        config.insert("rope_local_base_freq".to_string(), json!(local));
    }
    let key = "attention.sliding_window_pattern";
    match facts.get(key) {
        None => {}
        Some(Found::Whole(every)) if architecture == "gemma3" => {
            config.insert("sliding_window_pattern".to_string(), json!(every));
        }
        Some(Found::Flags(slides)) => {
            let kind = |slides: &bool| if *slides { "sliding_attention" } else { "full_attention" };
            config.insert("layer_types".to_string(), slides.iter().map(kind).collect());
        }
        Some(_) => return Err(facts.wrong(key, "a flag for each layer")),
    }
    Ok(())
}

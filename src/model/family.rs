//! `config.json` -> [`ModelSpec`], family by family: Llama, Mistral, Qwen2, Qwen3, Gemma 2, Gemma 3 (text).
//!
//! Reads the dialects of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`). Defaults are those of
//! transformers' config classes. An unsupported field that would change the maths is refused by name; nothing is
//! guessed.

use super::config_json::Config;
use super::rope::RopeScaling;
use super::spec::{LayerSpec, ModelSpec};
use crate::checkpoint::model_config;
use crate::ops::activation::Activation;
use crate::{ensure_valid, invalid};
use anyhow::Result;
use serde_json::Value;
use std::path::Path;

const SUPPORTED: &str = "llama (Llama 2 and 3, SmolLM2), mistral, qwen2 (Qwen2 and 2.5), qwen3, gemma2, gemma3_text";

impl ModelSpec {
    /// Reads `config.json` in a checkpoint folder, or what a GGUF file says in its place.
    ///
    /// # Errors
    /// A missing or malformed file, an unsupported `model_type`, or an unsupported field, named.
    pub fn load(place: &Path) -> Result<Self> {
        let (fields, origin) = model_config(place)?;
        parse(&Config { fields: &fields, origin: origin.display().to_string() })
    }
}

fn parse(config: &Config) -> Result<ModelSpec> {
    let model_type = config.string("model_type")?.unwrap_or_default();
    let spec = match model_type {
        "llama" => llama(config),
        "mistral" => mistral(config),
        "qwen2" => qwen(config, false),
        "qwen3" => qwen(config, true),
        "gemma2" => gemma(config, false),
        "gemma3_text" => gemma(config, true),
        "gemma3" => Err(invalid!(
            "{}: model_type `gemma3` is the multimodal Gemma 3, which is not supported; a text-only checkpoint has \
             model_type `gemma3_text`",
            config.origin
        )),
        "" => Err(config.missing("model_type")),
        other => Err(invalid!("{}: model_type `{other}` is not supported; supported: {SUPPORTED}", config.origin)),
    }?;
    check(config, &spec)?;
    Ok(spec)
}

/// Families' defaults for absent fields.
struct Defaults {
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    tie_word_embeddings: bool,
    activation_key: &'static str,
    activation: &'static str,
    /// One rope for layers with full attention and one for those with a window.
    two_ropes: bool,
}

const LLAMA: Defaults = Defaults {
    num_key_value_heads: None,
    head_dim: None,
    max_position_embeddings: 2048,
    tie_word_embeddings: false,
    activation_key: "hidden_act",
    activation: "silu",
    two_ropes: false,
};

fn llama(config: &Config) -> Result<ModelSpec> {
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    let mlp_bias = config.flag("mlp_bias")?.unwrap_or(false);
    refuse_unsupported(config, &["attention_bias", "mlp_bias"])?;
    Ok(ModelSpec { qkv_bias: bias, o_bias: bias, mlp_bias, ..common(config, &LLAMA)? })
}

fn mistral(config: &Config) -> Result<ModelSpec> {
    let defaults = Defaults { num_key_value_heads: Some(8), max_position_embeddings: 4096 * 32, ..LLAMA };
    refuse_unsupported(config, &["sliding_window"])?;
    let mut spec = common(config, &defaults)?;
    let window = sliding_window(config)?;
    ensure_valid!(
        window.is_none() || config.get("layer_types").is_none(),
        "{}: `layer_types` is not supported beside a sliding_window for this model_type; expected null",
        config.origin
    );
    spec.layers.iter_mut().for_each(|layer| layer.window = window);
    Ok(spec)
}

fn qwen(config: &Config, third: bool) -> Result<ModelSpec> {
    let defaults = Defaults {
        num_key_value_heads: Some(32),
        head_dim: third.then_some(128),
        max_position_embeddings: 32_768,
        ..LLAMA
    };
    let own = ["sliding_window", "use_sliding_window", "max_window_layers", "layer_types"];
    let bias = if third { config.flag("attention_bias")?.unwrap_or(false) } else { true };
    refuse_unsupported(config, &[&own[..], if third { &["attention_bias"] } else { &[] }].concat())?;
    let mut spec = common(config, &defaults)?;
    (spec.qkv_bias, spec.o_bias, spec.qk_norm) = (bias, third && bias, third);
    // The window counts only if it is switched on, and then for the layers from max_window_layers on.
    let used = config.flag("use_sliding_window")?.unwrap_or(false);
    let window = sliding_window(config)?.filter(|_| used);
    let first = match config.get("max_window_layers") {
        Some(value) => value.as_u64().ok_or_else(|| config.wrong("max_window_layers", "a whole number", value))?,
        None => 28,
    };
    let slides = sliding_layers(config, spec.num_hidden_layers, |layer| window.is_some() && layer as u64 >= first)?;
    set_windows(config, &mut spec, &slides, window)?;
    Ok(spec)
}

fn gemma(config: &Config, third: bool) -> Result<ModelSpec> {
    let defaults = Defaults {
        num_key_value_heads: Some(4),
        head_dim: Some(256),
        max_position_embeddings: if third { 131_072 } else { 8192 },
        tie_word_embeddings: true,
        activation_key: "hidden_activation",
        activation: "gelu_pytorch_tanh",
        two_ropes: third,
    };
    let own = ["attention_bias", "sliding_window", "layer_types", "query_pre_attn_scalar", "final_logit_softcapping"];
    // transformers does not apply Gemma 3's attention soft-cap, others do: refused, since it is null in all of Google's
    // models.
    let cap: &[&str] = if third { &[] } else { &["attn_logit_softcapping"] };
    refuse_unsupported(config, &[&own[..], cap].concat())?;
    let mut spec = common(config, &defaults)?;
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    (spec.qkv_bias, spec.o_bias, spec.qk_norm) = (bias, bias, third);
    (spec.norm_offset, spec.post_norms) = (true, true);
    spec.attention_scale = config.number("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5);
    spec.embedding_scale = Some((spec.hidden_size as f64).sqrt());
    let cap = |key: &str, default: f64| {
        if config.is_written(key) || third { config.number(key) } else { Ok(Some(default)) }
    };
    spec.attention_softcap = cap("attn_logit_softcapping", 50.0)?;
    spec.logit_softcap = cap("final_logit_softcapping", 30.0)?;
    let pattern = match third {
        // transformers writes `_sliding_window_pattern`, but does not read it.
        true => config.size("sliding_window_pattern")?.unwrap_or(6),
        false => 2,
    };
    let slides = sliding_layers(config, spec.num_hidden_layers, |layer| (layer + 1) % pattern != 0)?;
    set_windows(config, &mut spec, &slides, sliding_window(config)?)?;
    for (layer, slides) in spec.layers.iter_mut().zip(slides) {
        layer.rope = usize::from(third && slides);
    }
    Ok(spec)
}

/// The sliding window: 4096 if absent; null means none.
fn sliding_window(config: &Config) -> Result<Option<usize>> {
    if config.is_written("sliding_window") { config.size("sliding_window") } else { Ok(Some(4096)) }
}

/// Sets the window of the layers that slide.
fn set_windows(config: &Config, spec: &mut ModelSpec, slides: &[bool], window: Option<usize>) -> Result<()> {
    ensure_valid!(
        window.is_some() || !slides.contains(&true),
        "{}: some layers have sliding attention, and there is no window: `sliding_window` is null or \
         `use_sliding_window` is not true",
        config.origin
    );
    for (layer, slides) in spec.layers.iter_mut().zip(slides) {
        layer.window = window.filter(|_| *slides);
    }
    Ok(())
}

/// Which layers have a sliding window: as `layer_types` says, else by `rule`.
fn sliding_layers(config: &Config, layers: usize, rule: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
    let Some(types) = config.strings("layer_types")? else { return Ok((0..layers).map(rule).collect()) };
    ensure_valid!(
        types.len() == layers,
        "{}: layer_types names {} layers, num_hidden_layers says {layers}",
        config.origin,
        types.len()
    );
    let slides = types.into_iter().map(|kind| match kind {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => Err(invalid!(
            "{}: layer type `{other}` is not supported; supported: full_attention, sliding_attention",
            config.origin
        )),
    });
    slides.collect()
}

/// What all families share: a Llama without biases.
fn common(config: &Config, defaults: &Defaults) -> Result<ModelSpec> {
    let hidden_size = config.required_size("hidden_size")?;
    let num_attention_heads = config.required_size("num_attention_heads")?;
    let num_hidden_layers = config.required_size("num_hidden_layers")?;
    // Layers and module names are listed before any weight is looked at.
    ensure_valid!(
        num_hidden_layers <= MAX_LAYERS,
        "{}: num_hidden_layers is {num_hidden_layers}, expected at most {MAX_LAYERS}",
        config.origin
    );
    let kv_default = defaults.num_key_value_heads.filter(|_| !config.is_written("num_key_value_heads"));
    let head_default = defaults.head_dim.filter(|_| !config.is_written("head_dim"));
    let head_dim =
        config.size("head_dim")?.or(head_default).unwrap_or_else(|| (hidden_size / num_attention_heads).max(1));
    let context = config.size("max_position_embeddings")?.unwrap_or(defaults.max_position_embeddings);
    Ok(ModelSpec {
        model_type: config.string("model_type")?.unwrap_or_default().to_string(),
        vocab_size: config.required_size("vocab_size")?,
        hidden_size,
        intermediate_size: config.required_size("intermediate_size")?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: config.size("num_key_value_heads")?.or(kv_default).unwrap_or(num_attention_heads),
        head_dim,
        max_position_embeddings: context,
        rms_norm_eps: config.number("rms_norm_eps")?.unwrap_or(1e-6),
        tie_word_embeddings: config.flag("tie_word_embeddings")?.unwrap_or(defaults.tie_word_embeddings),
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        norm_offset: false,
        post_norms: false,
        activation: activation(config, defaults)?,
        attention_scale: (head_dim as f64).powf(-0.5),
        attention_softcap: None,
        logit_softcap: None,
        embedding_scale: None,
        ropes: if defaults.two_ropes {
            ropes::by_layer_type(config, context)?
        } else {
            vec![ropes::single(config, context)?]
        },
        layers: vec![LayerSpec { window: None, rope: 0 }; num_hidden_layers],
    })
}

fn activation(config: &Config, defaults: &Defaults) -> Result<Activation> {
    let key = defaults.activation_key;
    match config.string(key)?.unwrap_or(defaults.activation) {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        other => {
            Err(invalid!("{}: {key} `{other}` is not supported; supported: silu, gelu_pytorch_tanh", config.origin))
        }
    }
}

/// More layers than any model has: a config.json with more is damaged.
const MAX_LAYERS: usize = 10_000;

/// Sizes that have to fit together.
fn check(config: &Config, spec: &ModelSpec) -> Result<()> {
    ensure_valid!(
        spec.num_attention_heads.is_multiple_of(spec.num_key_value_heads),
        "{}: num_attention_heads ({}) is not a multiple of num_key_value_heads ({})",
        config.origin,
        spec.num_attention_heads,
        spec.num_key_value_heads
    );
    ensure_valid!(spec.head_dim.is_multiple_of(2), "{}: head_dim {} is odd", config.origin, spec.head_dim);
    for rope in &spec.ropes {
        let RopeScaling::LongRope { short_factor, long_factor, .. } = &rope.scaling else { continue };
        ensure_valid!(
            short_factor.len() == spec.head_dim / 2 && long_factor.len() == spec.head_dim / 2,
            "{}: short_factor and long_factor hold {} and {} values, expected head_dim / 2 = {}",
            config.origin,
            short_factor.len(),
            long_factor.len(),
            spec.head_dim / 2
        );
    }
    Ok(())
}

/// A value with which a field has no effect.
enum Neutral {
    /// Only null, or no field at all.
    Null,
    Flag(bool),
    Number(f64),
    AllFull,
}

/// Refuses fields that would change the maths, except those that a family reads and names in `own`.
fn refuse_unsupported(config: &Config, own: &[&str]) -> Result<()> {
    quantisation::check(config)?;
    let fields = [
        ("attention_bias", Neutral::Flag(false)),
        ("mlp_bias", Neutral::Flag(false)),
        ("attention_dropout", Neutral::Number(0.0)),
        ("partial_rotary_factor", Neutral::Number(1.0)),
        ("logits_scaling", Neutral::Number(1.0)),
        ("logit_scale", Neutral::Number(1.0)),
        ("residual_multiplier", Neutral::Number(1.0)),
        ("embedding_multiplier", Neutral::Number(1.0)),
        ("attention_multiplier", Neutral::Null),
        ("sliding_window", Neutral::Null),
        ("use_sliding_window", Neutral::Flag(false)),
        ("layer_types", Neutral::AllFull),
        ("attention_chunk_size", Neutral::Null),
        ("query_pre_attn_scalar", Neutral::Null),
        ("attn_logit_softcapping", Neutral::Null),
        ("final_logit_softcapping", Neutral::Null),
        ("use_bidirectional_attention", Neutral::Flag(false)),
        ("is_causal", Neutral::Flag(true)),
        ("rope_interleaved", Neutral::Flag(false)),
        ("no_rope_layers", Neutral::Null),
        ("use_qk_norm", Neutral::Flag(false)),
        ("num_local_experts", Neutral::Null),
        ("num_experts", Neutral::Null),
    ];
    for (key, neutral) in fields.into_iter().filter(|(key, _)| !own.contains(key)) {
        let Some(got) = config.get(key) else { continue };
        let (harmless, expected) = match neutral {
            Neutral::Null => (false, "null".to_string()),
            Neutral::Flag(flag) => (got == &Value::Bool(flag), flag.to_string()),
            Neutral::Number(number) => (got.as_f64() == Some(number), number.to_string()),
            Neutral::AllFull => {
                let all = got.as_array().is_some_and(|types| types.iter().all(|kind| kind == "full_attention"));
                (all, "full_attention everywhere".to_string())
            }
        };
        ensure_valid!(
            harmless,
            "{}: `{key}` = {got} is not supported for this model_type; expected {expected}",
            config.origin
        );
    }
    Ok(())
}

mod quantisation;
mod ropes;

#[cfg(test)]
mod tests;

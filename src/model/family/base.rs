//! What all families share: a Llama without biases, with a family's defaults for absent fields.

use super::ropes::{self, RopeDefaults};
use crate::model::config_json::Config;
use crate::model::spec::{BlockNorms, LayerSpec, ModelSpec};
use crate::ops::activation::Activation;
use crate::{ensure_valid, invalid};
use anyhow::Result;

/// Families' defaults for absent fields.
pub struct Defaults {
    pub num_key_value_heads: Option<usize>,
    pub head_dim: Option<usize>,
    pub max_position_embeddings: usize,
    pub tie_word_embeddings: bool,
    pub activation_key: &'static str,
    pub activation: &'static str,
    pub rms_norm_eps: f64,
    /// `None`: the config has to have it.
    pub intermediate_size: Option<usize>,
    pub rope: RopeDefaults,
}

pub const LLAMA: Defaults = Defaults {
    num_key_value_heads: None,
    head_dim: None,
    max_position_embeddings: 2048,
    tie_word_embeddings: false,
    activation_key: "hidden_act",
    activation: "silu",
    rms_norm_eps: 1e-6,
    intermediate_size: None,
    rope: ropes::PLAIN,
};

const PLAIN_LAYER: LayerSpec = LayerSpec {
    window: None,
    rope: Some(0),
    delta_net: false,
    mixture: false,
    heads: None,
    values_are_keys: false,
    keys_of: None,
    wide: false,
};

/// What all families share: a Llama without biases.
pub fn common(config: &Config, defaults: &Defaults) -> Result<ModelSpec> {
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
        wrapped: false,
        model_type: config.string("model_type")?.unwrap_or_default().to_string(),
        vocab_size: config.required_size("vocab_size")?,
        hidden_size,
        intermediate_size: match defaults.intermediate_size {
            Some(size) => config.size("intermediate_size")?.unwrap_or(size),
            None => config.required_size("intermediate_size")?,
        },
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads: config.size("num_key_value_heads")?.or(kv_default).unwrap_or(num_attention_heads),
        head_dim,
        max_position_embeddings: context,
        rms_norm_eps: config.number("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps),
        tie_word_embeddings: config.flag("tie_word_embeddings")?.unwrap_or(defaults.tie_word_embeddings),
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        fused_qkv: false,
        fused_gate_up: false,
        gated_attention: false,
        delta_net: None,
        qk_norm: None,
        value_norm: false,
        norm_offset: false,
        norms: BlockNorms::BEFORE,
        activation: activation(config, defaults)?,
        attention_scale: (head_dim as f64).powf(-0.5),
        attention_softcap: None,
        logit_softcap: None,
        logit_scale: None,
        embedding_scale: None,
        residual_scale: None,
        layer_scale: false,
        layer_inputs: None,
        experts: None,
        ropes: ropes::of(config, context, &defaults.rope)?,
        layers: vec![PLAIN_LAYER; num_hidden_layers],
    })
}

/// Biases of attention, on q, k, v and o, where the config has them.
pub fn read_attention_bias(config: &Config, spec: &mut ModelSpec) -> Result<()> {
    let bias = config.flag("attention_bias")?.unwrap_or(false);
    (spec.qkv_bias, spec.o_bias) = (bias, bias);
    Ok(())
}

/// Biases of attention and of the MLP, where the config has them.
pub fn read_biases(config: &Config, spec: &mut ModelSpec) -> Result<()> {
    spec.mlp_bias = config.flag("mlp_bias")?.unwrap_or(false);
    read_attention_bias(config, spec)
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

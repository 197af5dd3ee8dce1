//! Gemma 2 and Gemma 3 (text).

use super::base::{Defaults, LLAMA, common, read_attention_bias};
use super::refused::refuse_unsupported;
use super::ropes;
use super::windows::{set_windows, sliding_window};
use crate::model::config_json::Config;
use crate::model::spec::{BlockNorms, ModelSpec, QkNorm};
use anyhow::Result;

pub fn gemma(config: &Config, third: bool) -> Result<ModelSpec> {
    let defaults = Defaults {
        num_key_value_heads: Some(4),
        head_dim: Some(256),
        max_position_embeddings: if third { 131_072 } else { 8192 },
        tie_word_embeddings: true,
        activation_key: "hidden_activation",
        activation: "gelu_pytorch_tanh",
        rope: if third { ropes::GEMMA_3 } else { ropes::PLAIN },
        ..LLAMA
    };
    let own = ["attention_bias", "sliding_window", "layer_types", "query_pre_attn_scalar", "final_logit_softcapping"];
    // transformers does not apply Gemma 3's attention soft-cap, others do: refused, since it is null in all of Google's
    // models.
    let cap: &[&str] = if third { &[] } else { &["attn_logit_softcapping"] };
    refuse_unsupported(config, &[&own[..], cap].concat())?;
    let mut spec = common(config, &defaults)?;
    read_attention_bias(config, &mut spec)?;
    spec.qk_norm = third.then_some(QkNorm::Heads);
    (spec.norm_offset, spec.norms) = (true, BlockNorms::AROUND);
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
    set_windows(config, &mut spec, sliding_window(config)?, |layer| (layer + 1) % pattern != 0)?;
    Ok(spec)
}

//! Fields that change the maths and that a family does not read: refused by name.

use super::quantisation;
use crate::ensure_valid;
use crate::model::config_json::Config;
use anyhow::Result;
use serde_json::Value;

/// A value with which a field has no effect.
enum Neutral {
    /// Only null, or no field at all.
    Null,
    Flag(bool),
    Number(f64),
    AllFull,
}

/// Refuses fields that would change the maths, except those that a family reads and names in `own`.
pub fn refuse_unsupported(config: &Config, own: &[&str]) -> Result<()> {
    quantisation::check(config)?;
    let fields = [
        ("attention_bias", Neutral::Flag(false)),
        ("mlp_bias", Neutral::Flag(false)),
        ("attention_dropout", Neutral::Number(0.0)),
        ("resid_pdrop", Neutral::Number(0.0)),
        ("embd_pdrop", Neutral::Number(0.0)),
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
        ("attn_output_gate", Neutral::Flag(false)),
        ("num_local_experts", Neutral::Null),
        ("num_experts", Neutral::Null),
        // It adds a loss to the objective.
        ("output_router_logits", Neutral::Flag(false)),
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

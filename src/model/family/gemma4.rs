//! Gemma 4 (text, dense): attention over all positions has heads of its own, and may take its values from its keys; queries, keys and
//! values are normed head by head and the scores not scaled; each layer's output has a factor.

use super::base::{Defaults, LLAMA, common, read_attention_bias};
use super::refused::refuse_unsupported;
use super::ropes;
use super::windows::set_windows;
use crate::ensure_valid;
use crate::model::config_json::Config;
use crate::model::spec::{BlockNorms, Heads, ModelSpec, QkNorm};
use anyhow::Result;
use serde_json::{Value, json};

const GEMMA_4: Defaults = Defaults {
    num_key_value_heads: Some(4),
    head_dim: Some(256),
    max_position_embeddings: 131_072,
    tie_word_embeddings: true,
    activation_key: "hidden_activation",
    activation: "gelu_pytorch_tanh",
    rope: ropes::GEMMA_4,
    ..LLAMA
};

pub fn gemma4(config: &Config) -> Result<ModelSpec> {
    let own =
        ["attention_bias", "sliding_window", "layer_types", "final_logit_softcapping", "use_bidirectional_attention"];
    refuse_unsupported(config, &own)?;
    refuse_parts(config)?;
    let mut spec = common(config, &GEMMA_4)?;
    read_attention_bias(config, &mut spec)?;
    (spec.qk_norm, spec.value_norm, spec.layer_scale) = (Some(QkNorm::Heads), true, true);
    (spec.norms, spec.attention_scale) = (BlockNorms::AROUND, 1.0);
    spec.embedding_scale = Some((spec.hidden_size as f64).sqrt());
    spec.logit_softcap = config.number("final_logit_softcapping")?;
    let window = if config.is_written("sliding_window") { config.size("sliding_window")? } else { Some(512) };
    let last = spec.num_hidden_layers - 1;
    set_windows(config, &mut spec, window, |layer| (layer + 1) % 6 != 0 && layer != last)?;
    // transformers takes it for full attention whatever is written.
    ensure_valid!(
        spec.layers.last().is_none_or(|layer| layer.window.is_none()),
        "{}: layer_types ends with sliding_attention; expected full_attention in the last layer",
        config.origin
    );
    read_heads(config, &mut spec)?;
    Ok(spec)
}

/// Refuses what is not served, with its value; absent fields have transformers' defaults.
fn refuse_parts(config: &Config) -> Result<()> {
    let zero = json!(0);
    for (key, default, harmless) in [
        ("hidden_size_per_layer_input", json!(256), &[json!(0)][..]),
        ("num_kv_shared_layers", zero.clone(), &[zero]),
        ("enable_moe_block", json!(false), &[json!(false)]),
        // Text is causal to a model that looks both ways in images.
        ("use_bidirectional_attention", Value::Null, &[Value::Null, json!(false), json!("vision")]),
        ("rope_theta", Value::Null, &[Value::Null]),
        ("rope_scaling", Value::Null, &[Value::Null]),
    ] {
        let got = config.fields.get(key).unwrap_or(&default);
        ensure_valid!(
            got.is_null() || harmless.contains(got),
            "{}: `{key}` = {got} is not supported for this model_type; expected {}",
            config.origin,
            harmless.iter().map(Value::to_string).collect::<Vec<_>>().join(" or ")
        );
    }
    Ok(())
}

/// The heads of attention over all positions: by layer, as the newest transformers writes them, or by `global_head_dim`, with which
/// `num_global_key_value_heads` counts where values are keys.
fn read_heads(config: &Config, spec: &mut ModelSpec) -> Result<()> {
    let values_are_keys = config.flag("attention_k_eq_v")?.unwrap_or(false);
    let by_layer = config.object("per_layer_config")?;
    let own = Heads { kv_heads: spec.num_key_value_heads, head_dim: spec.head_dim };
    let global = Heads {
        kv_heads: config.size("num_global_key_value_heads")?.filter(|_| values_are_keys).unwrap_or(own.kv_heads),
        head_dim: config.size("global_head_dim")?.unwrap_or(512),
    };
    for (number, layer) in spec.layers.iter_mut().enumerate() {
        layer.values_are_keys = values_are_keys && layer.window.is_none();
        let heads = match &by_layer {
            None if layer.window.is_none() => global,
            None => own,
            Some(layers) => written_heads(layers, number, own)?,
        };
        layer.heads = Some(heads).filter(|heads| *heads != own);
    }
    Ok(())
}

/// A layer's heads in `per_layer_config`, which holds what differs.
fn written_heads(layers: &Config, number: usize, own: Heads) -> Result<Heads> {
    let Some(layer) = layers.object(&number.to_string())? else { return Ok(own) };
    let other = layer.fields.keys().find(|key| !["head_dim", "num_key_value_heads"].contains(&key.as_str()));
    ensure_valid!(
        other.is_none(),
        "{}: `{}` is not supported; expected head_dim and num_key_value_heads only",
        layer.origin,
        other.map_or("", String::as_str)
    );
    Ok(Heads {
        kv_heads: layer.size("num_key_value_heads")?.unwrap_or(own.kv_heads),
        head_dim: layer.size("head_dim")?.unwrap_or(own.head_dim),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parse_with, windows};
    use super::*;
    use crate::model::rope::{Rope, RopeScaling};

    fn parsed(mut fields: Value) -> Result<ModelSpec> {
        for (key, value) in [("hidden_size_per_layer_input", json!(0)), ("sliding_window", json!(8))] {
            fields.as_object_mut().unwrap().entry(key).or_insert(value);
        }
        parse_with("gemma4_text", fields)
    }

    #[test]
    fn attention_over_all_positions_has_heads_of_its_own() {
        let heads = |fields| {
            let spec = parsed(fields).unwrap();
            (0..3).map(|layer| (spec.heads(layer).kv_heads, spec.heads(layer).head_dim)).collect::<Vec<_>>()
        };
        assert_eq!(heads(json!({})), [(2, 256), (2, 256), (2, 512)]);
        let fewer = |values_are_keys| json!({"global_head_dim": 64, "num_global_key_value_heads": 1, "attention_k_eq_v": values_are_keys});
        assert_eq!(heads(fewer(true)), [(2, 256), (2, 256), (1, 64)]);
        assert_eq!(heads(fewer(false)), [(2, 256), (2, 256), (2, 64)]);
        let by_layer = json!({"per_layer_config": {"2": {"head_dim": 64, "num_key_value_heads": 1}}});
        assert_eq!(heads(by_layer), heads(fewer(true)));
        let spec = parsed(fewer(true)).unwrap();
        assert_eq!(spec.block_linears(2).nth(1), Some("self_attn.k_proj"));
        assert_eq!((spec.block_linears(1).count(), spec.block_linears(2).count()), (7, 6));
        assert_eq!(spec.linear_shape(2, "self_attn.k_proj"), Some((64, 48)));
        assert_eq!(spec.linear_shape(1, "self_attn.k_proj"), Some((512, 48)));
    }

    #[test]
    fn defaults_are_transformers() {
        let spec = parsed(json!({"num_hidden_layers": 8})).unwrap();
        assert_eq!(windows(&spec), [Some(8), Some(8), Some(8), Some(8), Some(8), None, Some(8), None]);
        assert_eq!(spec.ropes[0], Rope::new(1e6, RopeScaling::Proportional { factor: 1.0, share: 0.25 }));
        assert_eq!(spec.ropes[1], Rope::new(1e4, RopeScaling::None));
        assert_eq!((spec.attention_scale, spec.logit_softcap, spec.tie_word_embeddings), (1.0, None, true));
        assert!(!spec.norm_offset && spec.value_norm && spec.layer_scale);
        let frequencies = spec.ropes[0].stretch(512, 0, 1).frequencies;
        assert_eq!((frequencies.len(), frequencies.iter().filter(|frequency| **frequency != 0.0).count()), (256, 64));
        let wrapped =
            json!({"text_config": {"hidden_size_per_layer_input": 0, "use_bidirectional_attention": "vision"}});
        let wrapped = parse_with("gemma4", wrapped).unwrap();
        assert_eq!((wrapped.num_hidden_layers, wrapped.vocab_size, wrapped.layers[0].window), (30, 262_144, Some(512)));
    }

    #[test]
    fn what_is_not_served_is_refused_by_name() {
        for (fields, needle) in [
            (json!({"hidden_size_per_layer_input": 32}), "`hidden_size_per_layer_input` = 32"),
            (json!({"num_kv_shared_layers": 2}), "`num_kv_shared_layers` = 2"),
            (json!({"enable_moe_block": true}), "`enable_moe_block` = true"),
            (json!({"use_bidirectional_attention": "all"}), "`use_bidirectional_attention` = \"all\""),
            (json!({"layer_types": vec!["sliding_attention"; 3]}), "ends with sliding_attention"),
            (json!({"rope_scaling": {"rope_type": "linear", "factor": 2}}), "`rope_scaling`"),
            (json!({"rope_parameters": {"full_attention": {"rope_theta": 5}}}), "`sliding_attention` is missing"),
            (json!({"per_layer_config": {"1": {"sliding_window": 3}}}), "`sliding_window` is not supported"),
            (json!({"per_layer_config": {"1": {"head_dim": 64}}}), "layer 1 has heads of 64 values"),
            (json!({"global_head_dim": 33}), "head_dim 33 is odd"),
        ] {
            let error = parsed(fields).unwrap_err();
            assert!(error.to_string().contains(needle), "{needle}: {error:#}");
            assert_eq!(crate::error::exit_code(&error), 2);
        }
        // As long as nothing is said, there are inputs of each layer.
        let error = parse_with("gemma4_text", json!({})).unwrap_err();
        assert!(error.to_string().contains("`hidden_size_per_layer_input` = 256"), "{error:#}");
        let other = json!({"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.5}});
        let error = parse_with("llama", other).unwrap_err().to_string();
        assert!(error.contains("partial_rotary_factor"), "{error}");
    }
}

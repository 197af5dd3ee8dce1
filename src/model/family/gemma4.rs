//! Gemma 4 (text, dense): attention over all positions has heads of its own, and may take its values from its keys; queries, keys and
//! values are normed head by head and the scores not scaled; each layer's output has a factor. The last layers may see the keys and
//! values of an earlier one, and each layer may have an input of its own.

use super::base::{Defaults, LLAMA, common, read_attention_bias};
use super::refused::refuse_unsupported;
use super::ropes;
use super::windows::set_windows;
use crate::ensure_valid;
use crate::model::config_json::Config;
use crate::model::spec::{BlockNorms, Heads, LayerInputSpec, ModelSpec, QkNorm};
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
    share_keys(config, &mut spec)?;
    spec.layer_inputs = layer_inputs(config, spec.vocab_size)?;
    Ok(spec)
}

/// Refuses what is not served, with its value; absent fields have transformers' defaults.
fn refuse_parts(config: &Config) -> Result<()> {
    for (key, default, harmless) in [
        ("enable_moe_block", json!(false), &[json!(false)][..]),
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

/// A number that may be 0; null is 0.
fn count(config: &Config, key: &str, default: usize) -> Result<usize> {
    let Some(got) = config.fields.get(key) else { return Ok(default) };
    if got.is_null() || got == &json!(0) { Ok(0) } else { config.required_size(key) }
}

/// The last layers see the keys and values of the last layer before them that is of their type.
fn share_keys(config: &Config, spec: &mut ModelSpec) -> Result<()> {
    let (layers, shared) = (spec.num_hidden_layers, count(config, "num_kv_shared_layers", 0)?);
    ensure_valid!(
        shared < layers,
        "{}: num_kv_shared_layers is {shared}; expected less than num_hidden_layers ({layers})",
        config.origin
    );
    let wide = config.flag("use_double_wide_mlp")?.unwrap_or(false);
    let (own, later) = spec.layers.split_at_mut(layers - shared);
    for layer in later {
        let source = own.iter().rposition(|earlier| earlier.window.is_some() == layer.window.is_some());
        ensure_valid!(
            source.is_some_and(|source| own[source].heads == layer.heads),
            "{}: num_kv_shared_layers is {shared}, and no layer before these has keys and values of their types and heads",
            config.origin
        );
        (layer.keys_of, layer.wide, layer.values_are_keys) = (source, wide, false);
    }
    Ok(())
}

fn layer_inputs(config: &Config, tokens: usize) -> Result<Option<LayerInputSpec>> {
    let size = count(config, "hidden_size_per_layer_input", 256)?;
    let vocab_size = config.size("vocab_size_per_layer_input")?.unwrap_or(262_144);
    ensure_valid!(
        size == 0 || vocab_size >= tokens,
        "{}: vocab_size_per_layer_input is {vocab_size}; expected at least vocab_size ({tokens})",
        config.origin
    );
    Ok((size > 0).then_some(LayerInputSpec { vocab_size, size }))
}

/// The heads of attention over all positions: by layer, as the newest transformers writes them, or by `global_head_dim`, with which
/// `num_global_key_value_heads` counts where values are keys.
fn read_heads(config: &Config, spec: &mut ModelSpec) -> Result<()> {
    let values_are_keys = config.flag("attention_k_eq_v")?.unwrap_or(false);
    let by_layer = config.object("per_layer_config")?;
    if let Some(layers) = &by_layer {
        check_layers(layers, spec.num_hidden_layers)?;
    }
    // With null all layers have the same heads.
    let by_type = !config.is_written("per_layer_config");
    let own = Heads { kv_heads: spec.num_key_value_heads, head_dim: spec.head_dim };
    let global = Heads {
        kv_heads: config.size("num_global_key_value_heads")?.filter(|_| values_are_keys).unwrap_or(own.kv_heads),
        head_dim: config.size("global_head_dim")?.unwrap_or(512),
    };
    for (number, layer) in spec.layers.iter_mut().enumerate() {
        layer.values_are_keys = values_are_keys && layer.window.is_none();
        let heads = match &by_layer {
            None if by_type && layer.window.is_none() => global,
            None => own,
            Some(layers) => written_heads(layers, number, own)?,
        };
        layer.heads = Some(heads).filter(|heads| *heads != own);
    }
    Ok(())
}

/// `per_layer_config` holds objects by layers' numbers.
fn check_layers(layers: &Config, count: usize) -> Result<()> {
    for (key, value) in layers.fields {
        ensure_valid!(
            key.parse::<usize>().is_ok_and(|layer| layer < count),
            "{}: `{key}` is no layer; expected 0 to {}",
            layers.origin,
            count.saturating_sub(1)
        );
        ensure_valid!(value.is_object(), "{}: `{key}` should be an object, got {value}", layers.origin);
    }
    Ok(())
}

/// A layer's heads in `per_layer_config`, which holds what differs.
fn written_heads(layers: &Config, number: usize, own: Heads) -> Result<Heads> {
    let key = layers.fields.keys().find(|key| key.parse() == Ok(number));
    let Some(layer) = key.map(|key| layers.object(key)).transpose()?.flatten() else { return Ok(own) };
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
        let padded = json!({"per_layer_config": {"02": {"head_dim": 64, "num_key_value_heads": 1}}});
        assert_eq!(heads(padded), heads(fewer(true)));
        for all_alike in [json!(null), json!({})] {
            assert_eq!(heads(json!({"per_layer_config": all_alike, "global_head_dim": 64})), [(2, 256); 3]);
        }
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
    fn ropes_of_types_that_no_layer_has_are_not_read() {
        let full = json!({"rope_type": "proportional", "rope_theta": 500, "partial_rotary_factor": 0.5});
        let of = |sliding: Value, types: Value| {
            let mut ropes = json!({"full_attention": full});
            if !sliding.is_boolean() {
                ropes["sliding_attention"] = sliding;
            }
            parsed(json!({"rope_parameters": ropes, "layer_types": types}))
        };
        let full_only = vec!["full_attention"; 3];
        for sliding in [json!(false), json!(null), json!({"rope_type": "nonsense"})] {
            let spec = of(sliding.clone(), json!(full_only)).unwrap();
            assert_eq!(spec.ropes[0], Rope::new(500.0, RopeScaling::Proportional { factor: 1.0, share: 0.5 }));
            let mixed = json!(["sliding_attention", "full_attention", "full_attention"]);
            assert!(of(sliding, mixed).is_err());
        }
    }

    #[test]
    fn the_last_layers_see_keys_of_the_last_of_their_type_before_them() {
        let types = ["sliding", "sliding", "full", "sliding", "full"].map(|kind| format!("{kind}_attention"));
        let spec = parsed(json!({
            "num_hidden_layers": 5, "layer_types": types, "num_kv_shared_layers": 2, "use_double_wide_mlp": true,
        }));
        let spec = spec.unwrap();
        assert_eq!(
            spec.layers.iter().map(|layer| layer.keys_of).collect::<Vec<_>>(),
            [None, None, None, Some(1), Some(2)]
        );
        assert_eq!((0..5).map(|layer| spec.shares_keys(layer)).collect::<Vec<_>>(), [false, true, true, false, false]);
        assert_eq!((0..5).map(|layer| spec.inner_size(layer)).collect::<Vec<_>>(), [80, 80, 80, 160, 160]);
        assert_eq!(spec.block_linears(3).take(3).collect::<Vec<_>>()[..2], ["self_attn.q_proj", "self_attn.o_proj"]);
        assert!(spec.layer_inputs.is_none());
    }

    #[test]
    fn layers_have_inputs_of_their_own_unless_the_size_is_zero() {
        let spec = parse_with("gemma4_text", json!({})).unwrap();
        assert_eq!(spec.layer_inputs, Some(LayerInputSpec { vocab_size: 262_144, size: 256 }));
        assert_eq!(spec.linear_shape(0, "per_layer_input_gate"), Some((256, 48)));
        assert_eq!((spec.block_linears(0).count(), spec.block_linears(0).last()), (9, Some("per_layer_projection")));
        assert!(parsed(json!({"hidden_size_per_layer_input": null})).unwrap().layer_inputs.is_none());
    }

    #[test]
    fn what_is_not_served_is_refused_by_name() {
        for (fields, needle) in [
            (
                json!({"hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 99}),
                "vocab_size_per_layer_input is 99",
            ),
            (json!({"num_kv_shared_layers": 3}), "less than num_hidden_layers (3)"),
            (json!({"num_kv_shared_layers": 1}), "no layer before these"),
            (json!({"enable_moe_block": true}), "`enable_moe_block` = true"),
            (json!({"use_bidirectional_attention": "all"}), "`use_bidirectional_attention` = \"all\""),
            (json!({"layer_types": vec!["sliding_attention"; 3]}), "ends with sliding_attention"),
            (json!({"rope_scaling": {"rope_type": "linear", "factor": 2}}), "`rope_scaling`"),
            (json!({"rope_parameters": {"full_attention": {"rope_theta": 5}}}), "`sliding_attention` is missing"),
            (json!({"per_layer_config": {"1": {"sliding_window": 3}}}), "`sliding_window` is not supported"),
            (json!({"per_layer_config": {"1": {"head_dim": 64}}}), "layer 1 has heads of 64 values"),
            (
                json!({"per_layer_config": {"3": {"head_dim": 64}}}),
                "per_layer_config: `3` is no layer; expected 0 to 2",
            ),
            (json!({"per_layer_config": {"full_attention": {"head_dim": 64}}}), "`full_attention` is no layer"),
            (json!({"per_layer_config": {"2": null}}), "`2` should be an object, got null"),
            (json!({"global_head_dim": 33}), "head_dim 33 is odd"),
        ] {
            let error = parsed(fields).unwrap_err();
            assert!(error.to_string().contains(needle), "{needle}: {error:#}");
            assert_eq!(crate::error::exit_code(&error), 2);
        }
        let other = json!({"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.5}});
        let error = parse_with("llama", other).unwrap_err().to_string();
        assert!(error.contains("partial_rotary_factor"), "{error}");
    }
}

use super::*;
use crate::model::rope::Rope;
use crate::model::rope::RopeScaling;
use crate::model::spec::{BlockNorms, DeltaNetSpec, QkNorm};
use serde_json::{Value, json};

pub(super) fn parse_with(model_type: &str, overrides: Value) -> Result<ModelSpec> {
    let mut value = json!({
        "model_type": model_type, "vocab_size": 100, "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
    });
    for (key, field) in overrides.as_object().unwrap() {
        value[key] = field.clone();
    }
    parse(&Config { fields: value.as_object().unwrap(), origin: "config.json".into() })
}

fn llama_with(overrides: Value) -> Result<ModelSpec> {
    parse_with("llama", overrides)
}

pub(super) fn windows(spec: &ModelSpec) -> Vec<Option<usize>> {
    spec.layers.iter().map(|layer| layer.window).collect()
}

#[test]
fn both_dialects_mean_the_same() {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 16});
    let mut five = scaling.clone();
    five["rope_theta"] = json!(5000.0);
    let four = llama_with(json!({"rope_theta": 5000.0, "rope_scaling": scaling})).unwrap();
    assert_eq!(four, llama_with(json!({"rope_parameters": five})).unwrap());
    assert_eq!(four.ropes[0].theta, 5000.0);
    assert!(matches!(four.ropes[0].scaling, RopeScaling::Llama3 { .. }));
}

#[test]
fn legacy_type_key_and_nulls() {
    let spec = llama_with(json!({"rope_scaling": {"type": "linear", "factor": 2.5}, "head_dim": null})).unwrap();
    assert_eq!(spec.ropes[0].scaling, RopeScaling::Linear { factor: 2.5 });
    assert_eq!(spec.head_dim, 12);
}

#[test]
fn the_original_context_may_stand_outside_the_scaling() {
    // There it takes precedence, as in transformers.
    let scaling = |original| json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": original});
    let inside = llama_with(json!({"rope_scaling": scaling(16)})).unwrap();
    let both = json!({"rope_scaling": scaling(32), "original_max_position_embeddings": 16});
    assert_eq!(llama_with(both).unwrap(), inside);
}

#[test]
fn two_dialects_in_one_file_have_to_agree() {
    let both = |scaling: Value| {
        json!({"rope_theta": 5e5, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5},
               "rope_scaling": scaling})
    };
    let spec = llama_with(both(json!({"type": "linear", "factor": 2}))).unwrap();
    assert_eq!(spec.ropes[0], Rope::new(5e5, RopeScaling::Linear { factor: 2.0 }));
    assert_eq!(llama_with(both(json!(null))).unwrap(), spec);
    let nested = json!({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}},
                        "rope_scaling": {"rope_type": "linear", "factor": 8}});
    for result in [llama_with(both(json!({"type": "yarn", "factor": 4}))), parse_with("gemma3_text", nested)] {
        let error = result.unwrap_err();
        assert!(error.to_string().contains("`rope_parameters` and `rope_scaling`"), "{error:#}");
        assert_eq!(crate::error::exit_code(&error), 2);
    }
}

#[test]
fn windows_follow_each_family_s_rules() {
    assert_eq!(windows(&parse_with("mistral", json!({})).unwrap()), [Some(4096); 3]);
    assert_eq!(windows(&parse_with("mistral", json!({"sliding_window": null})).unwrap()), [None; 3]);
    assert_eq!(windows(&parse_with("mistral", json!({"sliding_window": 8})).unwrap()), [Some(8); 3]);
    // Qwen writes a window that it does not use.
    let qwen = |used: bool| json!({"sliding_window": 8, "use_sliding_window": used, "max_window_layers": 1});
    assert_eq!(windows(&parse_with("qwen2", qwen(false)).unwrap()), [None; 3]);
    assert_eq!(windows(&parse_with("qwen2", qwen(true)).unwrap()), [None, Some(8), Some(8)]);
    assert_eq!(windows(&parse_with("gemma2", json!({"sliding_window": 8})).unwrap()), [Some(8), None, Some(8)]);
    let gemma3 = |fields| windows(&parse_with("gemma3_text", fields).unwrap());
    assert_eq!(gemma3(json!({"sliding_window": 8})), [Some(8); 3]);
    assert_eq!(gemma3(json!({"sliding_window": 8, "sliding_window_pattern": 3})), [Some(8), Some(8), None]);
    assert_eq!(gemma3(json!({"sliding_window": 8, "_sliding_window_pattern": 3})), [Some(8); 3]);
    let types = json!(["full_attention", "sliding_attention", "full_attention"]);
    assert_eq!(gemma3(json!({"sliding_window": 8, "layer_types": types})), [None, Some(8), None]);
    let error = parse_with("gemma2", json!({"layer_types": ["full_attention"]})).unwrap_err().to_string();
    assert!(error.contains("layer_types names 1 layers"), "{error}");
}

#[test]
fn families_differ_by_fields() {
    let qwen2 = parse_with("qwen2", json!({})).unwrap();
    assert!((qwen2.qkv_bias, qwen2.o_bias, qwen2.qk_norm) == (true, false, None));
    let qwen3 = parse_with("qwen3", json!({})).unwrap();
    assert!((qwen3.qkv_bias, qwen3.qk_norm, qwen3.head_dim) == (false, Some(QkNorm::Heads), 128));
    let gemma2 = parse_with("gemma2", json!({"query_pre_attn_scalar": 64})).unwrap();
    assert_eq!((gemma2.attention_softcap, gemma2.logit_softcap), (Some(50.0), Some(30.0)));
    assert_eq!((gemma2.attention_scale, gemma2.head_dim, gemma2.tie_word_embeddings), (0.125, 256, true));
    assert!(gemma2.norms == BlockNorms::AROUND && gemma2.norm_offset && gemma2.qk_norm.is_none());
    let uncapped = parse_with("gemma2", json!({"attn_logit_softcapping": null})).unwrap();
    assert_eq!((uncapped.attention_softcap, uncapped.logit_softcap), (None, Some(30.0)));
}

#[test]
fn gemma_3_has_two_ropes_in_either_dialect() {
    let four =
        json!({"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8}});
    let five = json!({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8, "rope_theta": 1e6},
                                          "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}});
    let spec = parse_with("gemma3_text", four).unwrap();
    assert_eq!(spec, parse_with("gemma3_text", five.clone()).unwrap());
    assert_eq!(spec.ropes[0], Rope::new(1e6, RopeScaling::Linear { factor: 8.0 }));
    assert_eq!(spec.ropes[1], Rope::new(1e4, RopeScaling::None));
    assert!(spec.layers.iter().all(|layer| layer.rope == Some(usize::from(layer.window.is_some()))));
    let error = parse_with("qwen3", five).unwrap_err().to_string();
    assert!(error.contains("by layer type"), "{error}");
}

#[test]
fn what_changes_the_maths_is_refused_by_name() {
    for (model_type, overrides, needle) in [
        ("mamba", json!({}), "mamba"),
        (
            "qwen3_next",
            json!({}),
            "`qwen3_next` is not supported: its gated DeltaNets have q, k, v and z in one projection",
        ),
        ("qwen3_next", json!({}), "use a Qwen3.5 (qwen3_5, qwen3_5_moe)"),
        ("gemma3", json!({"text_config": {"model_type": "llama"}}), "supported: gemma3_text"),
        ("mistral3", json!({"text_config": {"model_type": "llama"}}), "supported: mistral, ministral3"),
        ("mistral3", json!({"quantization_config": {"quant_method": "fp8"}}), "quantised by fp8"),
        ("qwen3_vl", json!({"text_config": {"num_experts": 4}}), "text_config: `num_experts` = 4"),
        (
            "ministral3",
            json!({"rope_parameters": {"rope_type": "yarn", "factor": 2}}),
            "`llama_4_scaling_beta` is missing",
        ),
        ("mistral", json!({"rope_scaling": {"llama_4_scaling_beta": 0.1}}), "`llama_4_scaling_beta` = 0.1"),
        ("", json!({"model_type": null}), "`model_type` is missing"),
        ("llama", json!({"hidden_act": "gelu"}), "gelu"),
        ("llama", json!({"rope_scaling": {"rope_type": "mrope", "factor": 2.0}}), "mrope"),
        (
            "llama",
            json!({"rope_scaling": {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}}),
            "half of what is rotated",
        ),
        ("llama", json!({"attention_dropout": 0.1}), "attention_dropout"),
        ("llama", json!({"sliding_window": 8}), "sliding_window"),
        ("llama", json!({"num_key_value_heads": 3}), "num_key_value_heads"),
        ("llama", json!({"hidden_size": "48"}), "hidden_size"),
        ("llama", json!({"num_hidden_layers": 4_000_000_000u64}), "num_hidden_layers"),
        ("mistral", json!({"quantization_config": {}}), "quantised by an unnamed method (`quantization_config`)"),
        ("llama", json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}), "quantised by gptq"),
        (
            "llama",
            json!({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": true}}),
            "bitsandbytes in eight bits",
        ),
        ("qwen2", json!({"attention_bias": true}), "attention_bias"),
        (
            "qwen2",
            json!({"layer_types": ["chunked_attention", "full_attention", "full_attention"]}),
            "chunked_attention",
        ),
        ("gemma3_text", json!({"use_bidirectional_attention": true}), "use_bidirectional_attention"),
        ("gemma2", json!({"hidden_activation": "gelu"}), "hidden_activation"),
        // transformers reads this field of Gemma 3 but does not use it; others do.
        ("gemma3_text", json!({"attn_logit_softcapping": 2.0}), "attn_logit_softcapping"),
        ("llama", json!({"is_causal": false}), "is_causal"),
        // Layers that slide without a window, and the other way round.
        ("gemma2", json!({"sliding_window": null}), "sliding_window"),
        ("gemma3_text", json!({"sliding_window": null}), "sliding_window"),
        (
            "qwen2",
            json!({"use_sliding_window": false, "layer_types": ["full_attention", "full_attention", "sliding_attention"]}),
            "use_sliding_window",
        ),
        ("mistral", json!({"sliding_window": 8, "layer_types": vec!["full_attention"; 3]}), "layer_types"),
    ] {
        let error = parse_with(model_type, overrides).unwrap_err();
        assert!(error.to_string().contains(needle), "{error:#}");
        assert_eq!(crate::error::exit_code(&error), 2);
    }
}

#[test]
fn windows_and_rotations_of_the_newer_families() {
    let rotated = |spec: &ModelSpec| -> Vec<Option<usize>> { spec.layers.iter().map(|layer| layer.rope).collect() };
    let smollm3 = |fields| parse_with("smollm3", fields).unwrap();
    let every_second = smollm3(json!({"no_rope_layer_interval": 2}));
    assert_eq!(rotated(&every_second), [Some(0), None, Some(0)]);
    assert_eq!((every_second.ropes[0].theta, every_second.tie_word_embeddings), (2e6, true));
    assert_eq!(rotated(&smollm3(json!({"no_rope_layers": [0, 1, 1, 1]}))), [None, Some(0), Some(0)]);
    // A window is for layers without a rotation.
    let windowed = smollm3(json!({"no_rope_layers": [1, 0, 1], "use_sliding_window": true, "sliding_window": 8}));
    assert_eq!(windows(&windowed), [None, Some(8), None]);
    let olmo3 = parse_with("olmo3", json!({"num_hidden_layers": 4, "rope_theta": 7e3})).unwrap();
    assert_eq!(windows(&olmo3), [Some(4096), Some(4096), Some(4096), None]);
    assert_eq!(rotated(&olmo3), [Some(1), Some(1), Some(1), Some(0)]);
    assert_eq!((olmo3.ropes[0].theta, olmo3.ropes[1].theta), (7e3, 5e5));
    let phi3 = |fields| parse_with("phi3", fields).unwrap();
    assert_eq!(windows(&phi3(json!({"sliding_window": 5}))), [Some(5); 3]);
    let long = json!({"type": "su", "short_factor": [1, 1, 1], "long_factor": [1, 2, 3]});
    let long = phi3(json!({"partial_rotary_factor": 0.5, "rope_scaling": long}));
    let RopeScaling::LongRope { original_max_position_embeddings, .. } = long.ropes[0].scaling else { panic!() };
    assert_eq!((long.ropes[0].partial, original_max_position_embeddings), (0.5, 4096.0));
    // Three frequencies of five values rotate six, as transformers does.
    let odd = json!({"head_dim": 16, "partial_rotary_factor": 0.35});
    assert_eq!(phi3(odd).ropes[0].heads(16).rotary_dim, 6);
    assert_eq!(parse_with("glm4", json!({})).unwrap().ropes[0].partial, 0.5);
}

#[test]
fn what_the_newer_families_cannot_have_is_refused_by_name() {
    for (model_type, fields, needle) in [
        ("smollm3", json!({"no_rope_layers": [1, 0]}), "no_rope_layers holds 2 values"),
        ("smollm3", json!({"no_rope_layers": [1, 2, 1]}), "expected a 0 or 1"),
        ("granite", json!({"logits_scaling": 0}), "logits_scaling"),
        ("granite", json!({"num_local_experts": 4}), "num_local_experts"),
        ("qwen3_moe", json!({"num_experts": 4, "num_experts_per_tok": 5}), "5 of 4 experts"),
        ("qwen3_moe", json!({"num_experts": 5000}), "at most 4096"),
        ("qwen3_moe", json!({"output_router_logits": true}), "output_router_logits"),
        ("olmo2", json!({"sliding_window": 8}), "sliding_window"),
        ("olmo3", json!({"layer_types": ["full_attention", "sliding_attention", "x"]}), "layer type `x`"),
        ("phi3", json!({"rope_scaling": {"type": "linear", "factor": 2}}), "default, longrope"),
        ("phi3", json!({"resid_pdrop": 0.1}), "resid_pdrop"),
        ("phi3", json!({"partial_rotary_factor": 1.5}), "at most 1"),
        ("glm4", json!({"partial_rotary_factor": 0.001}), "at least one value"),
        ("ministral3", json!({"rope_parameters": {}}), "`rope_parameters` is empty"),
        ("llama", json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
    ] {
        let error = parse_with(model_type, fields).unwrap_err();
        assert!(error.to_string().contains(needle), "{model_type} {needle}: {error:#}");
        assert_eq!(crate::error::exit_code(&error), 2);
    }
}

#[test]
fn some_layers_of_a_mixture_have_experts() {
    let mixtures = |fields| -> Vec<bool> {
        let spec = parse_with("qwen3_moe", fields).unwrap();
        spec.layers.iter().map(|layer| layer.mixture).collect()
    };
    assert_eq!(mixtures(json!({})), [true; 3]);
    assert_eq!(mixtures(json!({"mlp_only_layers": [1]})), [true, false, true]);
    assert_eq!(mixtures(json!({"decoder_sparse_step": 2})), [false, true, false]);
    let spec =
        parse_with("qwen3_moe", json!({"num_experts": 4, "num_experts_per_tok": 2, "mlp_only_layers": [0]})).unwrap();
    assert_eq!(spec.block_linears(0).count(), 7);
    assert_eq!(spec.block_linears(1).count(), 4);
    assert_eq!(spec.mixture_matrices(1).len(), 1 + 4 * 3);
    assert_eq!(spec.linear_shape(1, "mlp.experts.3.down_proj"), Some((48, 768)));
}

#[test]
fn three_layers_of_four_of_qwen3_5_have_a_gated_delta_net() {
    let parsed = |fields| parse_with("qwen3_5_text", fields).unwrap();
    let recurrent = |spec: &ModelSpec| spec.layers.iter().map(|layer| layer.delta_net).collect::<Vec<_>>();
    let plain = parsed(json!({"num_hidden_layers": 5}));
    assert_eq!(recurrent(&plain), [true, true, true, false, true]);
    assert_eq!(recurrent(&parsed(json!({"full_attention_interval": 2}))), [true, false, true]);
    let types = json!(["full_attention", "linear_attention", "full_attention"]);
    assert_eq!(recurrent(&parsed(json!({"layer_types": types}))), [false, true, false]);
    let DeltaNetSpec { heads, window } = plain.delta_net.unwrap();
    assert_eq!((heads.key_heads, heads.value_heads, heads.key_dim, heads.value_dim, window), (16, 32, 128, 128, 4));
    assert_eq!((plain.ropes[0].partial, plain.ropes[0].theta, plain.head_dim), (0.25, 1e4, 256));
    assert!(plain.norm_offset && plain.gated_attention && plain.qk_norm == Some(QkNorm::Heads));
    assert!(!plain.qkv_bias && plain.layers.iter().all(|layer| layer.rope.is_none() == layer.delta_net));
    assert_eq!(plain.block_linears(0).collect::<Vec<_>>()[..2], ["linear_attn.in_proj_qkv", "linear_attn.in_proj_z"]);
    assert_eq!((plain.block_linears(0).count(), plain.block_linears(3).count()), (8, 7));
    assert_eq!(plain.linear_shape(1, "self_attn.q_proj"), Some((2 * 4 * 256, 48)));
    assert_eq!(plain.linear_shape(1, "linear_attn.in_proj_qkv"), Some((2 * 16 * 128 + 32 * 128, 48)));
    let wrapped = parse_with("qwen3_5", json!({"text_config": {"num_hidden_layers": 24}})).unwrap();
    assert!(wrapped.wrapped && (wrapped.hidden_size, wrapped.vocab_size) == (4096, 248_320));
    for (fields, needle) in [
        (json!({"hidden_act": "gelu_pytorch_tanh"}), "expected silu"),
        (json!({"attn_output_gate": false}), "`attn_output_gate` = false"),
        (json!({"linear_num_value_heads": 24}), "linear_num_value_heads (24) is not a multiple"),
        (json!({"linear_conv_kernel_dim": 1}), "linear_conv_kernel_dim is 1"),
        (json!({"layer_types": ["full_attention", "linear_attention", "sliding_attention"]}), "`sliding_attention`"),
        (json!({"layer_types": ["full_attention"]}), "layer_types names 1 layers"),
        (json!({"num_experts": 4}), "num_experts"),
    ] {
        let error = parse_with("qwen3_5_text", fields).unwrap_err();
        assert!(error.to_string().contains(needle), "{needle}: {error:#}");
        assert_eq!(crate::error::exit_code(&error), 2);
    }
    let gate = parse_with("qwen3", json!({"attn_output_gate": true})).unwrap_err();
    assert!(gate.to_string().contains("attn_output_gate"), "{gate:#}");
}

#[test]
fn all_layers_of_qwen3_5_s_mixtures_have_experts_and_a_shared_one() {
    let spec = parse_with("qwen3_5_moe_text", json!({"num_hidden_layers": 4, "num_key_value_heads": null})).unwrap();
    let experts = spec.experts.unwrap();
    assert_eq!((experts.count, experts.per_token, experts.intermediate_size, experts.shared), (256, 8, 512, Some(512)));
    assert!(experts.normalised && spec.layers.iter().all(|layer| layer.mixture));
    let linears = |layer| spec.block_linears(layer).collect::<Vec<_>>();
    assert_eq!(linears(3)[4..], linears(0)[5..]);
    assert_eq!(
        linears(3)[4..],
        ["gate_proj", "up_proj", "down_proj"]
            .map(|part| format!("mlp.shared_expert.{part}"))
            .iter()
            .map(String::as_str)
            .chain(["mlp.shared_expert_gate"])
            .collect::<Vec<_>>()[..]
    );
    assert_eq!(spec.linear_shape(1, "mlp.shared_expert_gate"), Some((1, 48)));
    assert_eq!(spec.linear_shape(1, "mlp.shared_expert.down_proj"), Some((48, 512)));
    let wrapped = parse_with("qwen3_5_moe", json!({"text_config": {}})).unwrap();
    assert_eq!((wrapped.hidden_size, wrapped.num_hidden_layers, wrapped.num_key_value_heads), (2048, 40, 2));
    for (fields, needle) in [
        (json!({"norm_topk_prob": false}), "`norm_topk_prob` = false"),
        (json!({"mlp_only_layers": [1]}), "`mlp_only_layers` = [1.0]"),
        (json!({"num_experts": 4, "num_experts_per_tok": 5}), "5 of 4 experts"),
        (json!({"output_router_logits": true}), "output_router_logits"),
    ] {
        let error = parse_with("qwen3_5_moe_text", fields).unwrap_err();
        assert!(error.to_string().contains(needle), "{needle}: {error:#}");
        assert_eq!(crate::error::exit_code(&error), 2);
    }
}

#[test]
fn text_models_of_multimodal_classes_have_their_classes_defaults() {
    let sizes = |spec: &ModelSpec| {
        let ModelSpec { vocab_size, hidden_size, num_hidden_layers, num_attention_heads, .. } = *spec;
        (vocab_size, hidden_size, num_hidden_layers, num_attention_heads, spec.num_key_value_heads, spec.head_dim)
    };
    let parsed = |model_type: &str, text: Value| parse_with(model_type, json!({"text_config": text})).unwrap();
    let gemma3 = parsed("gemma3", json!({"hidden_size": 2560, "sliding_window": 1024, "num_hidden_layers": 34}));
    assert_eq!(sizes(&gemma3), (262_208, 2560, 34, 8, 4, 256));
    assert!(gemma3.wrapped && gemma3.tie_word_embeddings && gemma3.model_type == "gemma3_text");
    assert_eq!(sizes(&parsed("qwen3_vl", json!({}))), (151_936, 4096, 32, 32, 32, 128));
    let mistral3 = parsed("mistral3", json!({"tie_word_embeddings": false}));
    assert_eq!(sizes(&mistral3), (32_000, 4096, 32, 32, 8, 128));
    // What stands in text_config does not count.
    assert!(mistral3.tie_word_embeddings && mistral3.layers[0].window == Some(4096));
    let untied = parse_with("mistral3", json!({"tie_word_embeddings": false})).unwrap();
    assert_eq!((sizes(&untied), untied.tie_word_embeddings), ((131_072, 5120, 40, 32, 8, 128), false));
    assert_eq!((untied.ropes[0].theta, untied.layers[0].window), (1e9, None));
    let ministral3 = parsed("mistral3", json!({"model_type": "ministral3"}));
    let Rope { theta, growth, .. } = ministral3.ropes[0];
    let growth = growth.unwrap();
    assert_eq!((theta, growth.beta, growth.original_max_position_embeddings), (1e6, 0.1, 16384.0));
    let RopeScaling::Yarn { factor, attention_factor, .. } = ministral3.ropes[0].scaling else { panic!() };
    assert_eq!((factor, attention_factor, ministral3.context()), (16.0, 1.0, 262_144));
}

#[test]
fn text_models_of_multimodal_classes_stand_alone_too() {
    let alone = |model_type: &str, fields| parse_with(model_type, fields).unwrap();
    let sections =
        json!({"rope_type": "default", "mrope_section": [3, 2, 1], "mrope_interleaved": true, "rope_theta": 5e6});
    let qwen3_vl = alone("qwen3_vl_text", json!({"rope_parameters": sections}));
    assert_eq!(qwen3_vl.ropes[0], Rope::new(5e6, RopeScaling::None));
    assert!(!qwen3_vl.wrapped && !qwen3_vl.tie_word_embeddings && qwen3_vl.qk_norm == Some(QkNorm::Heads));
    assert_eq!(alone("qwen3_vl_text", json!({})).ropes[0].theta, 5e5);
    assert_eq!(windows(&alone("ministral3", json!({}))), [None; 3]);
    assert_eq!(windows(&alone("ministral3", json!({"sliding_window": 9}))), [Some(9); 3]);
}

//! candle-transformers' Llama as a second, independent oracle for the forward pass.

use crate::support::files::fixture;
use crate::support::goldens::*;
use crate::support::tensors::{max_difference, to_vec};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig, LlamaEosToks};

/// candle's config of a golden model; its own struct has no default for fields that transformers may leave out.
fn candle_config(case: &str) -> Config {
    let spec = spec(case);
    let config = LlamaConfig {
        hidden_size: spec.hidden_size,
        intermediate_size: spec.intermediate_size,
        vocab_size: spec.vocab_size,
        num_hidden_layers: spec.num_hidden_layers,
        num_attention_heads: spec.num_attention_heads,
        num_key_value_heads: Some(spec.num_key_value_heads),
        rms_norm_eps: spec.rms_norm_eps,
        rope_theta: spec.ropes[0].theta as f32,
        bos_token_id: None,
        eos_token_id: Some(LlamaEosToks::Single(0)),
        rope_scaling: None,
        max_position_embeddings: spec.max_position_embeddings,
        tie_word_embeddings: Some(spec.tie_word_embeddings),
    };
    config.into_config(false)
}

/// Only `llama_gqa` is a model that candle's Llama can express: it has no biases, no free head_dim, and no linear
/// rope scaling.
#[test]
fn logits_equal_candle_transformers() {
    let case = "llama_gqa";
    let files = [fixture(case).join("model/model.safetensors")];
    let tensors = candle_core::safetensors::load(&files[0], &Device::Cpu).unwrap();
    let vars = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let config = candle_config(case);
    let oracle = Llama::load(vars, &config).unwrap();
    let ours = base(case, false);
    for (row, example) in GoldenBatch::load(case).examples().iter().enumerate() {
        // candle's Llama gives the logits of the last position only.
        let count = example.input_ids.len();
        for end in [1, count / 2, count] {
            let ids = &example.input_ids[..end];
            let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
            let input = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let expected = to_vec(&oracle.forward(&input, 0, &mut cache).unwrap());
            let got = to_vec(&ours.logits(ids, &[end]).unwrap());
            let worst = max_difference(&got[got.len() - expected.len()..], &expected);
            assert!(worst <= 1e-4, "row {row}, {end} tokens: {worst}");
        }
    }
}

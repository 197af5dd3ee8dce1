//! What a step holds through the GPU's kernels, but for what a GPU's context takes, beside the plan of a dry run.

use super::allocator::peak;
use super::{forecast, samples, through_kernels, trainer_of, write};
use asft::config::Settings;
use asft::model::Quantize;
use candle_core::DType;
use serde_json::{Value, json};

fn llama() -> Value {
    json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": 128,
        "intermediate_size": 512, "max_position_embeddings": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 3, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "vocab_size": 256,
    })
}

/// Many small experts for each token, so that their rows count.
fn mixture() -> Value {
    json!({
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_act": "silu", "hidden_size": 128,
        "intermediate_size": 512, "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 8,
        "norm_topk_prob": true, "decoder_sparse_step": 1, "max_position_embeddings": 256, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "num_hidden_layers": 4, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "vocab_size": 256,
    })
}

/// The same, so wide that at most the rows of 2048 tokens are added up at a time.
pub fn wide_mixture() -> Value {
    let mut config = mixture();
    (config["hidden_size"], config["num_hidden_layers"]) = (1024.into(), 2.into());
    config
}

fn delta_net() -> Value {
    json!({
        "model_type": "qwen3_5_text", "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 64, "num_hidden_layers": 3, "vocab_size": 256, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
        "layer_types": ["full_attention", "linear_attention", "linear_attention"],
    })
}

/// Asserts that the peak of two steps is what was planned; `quantize`: as `model.quantize`, head and embedding too.
fn assert_planned(what: &str, config: &Value, dtype: DType, lengths: &[u32], quantize: Option<Quantize>) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), config);
    let (batch, mut settings) = (samples(lengths), Settings::default());
    (settings.model.quantize, settings.model.quantize_head) = (quantize, quantize.is_some());
    let (_, held) = peak(|| {
        let mut trainer = trainer_of(dir.path(), dtype, settings.model.compute().frozen(), 0.05, 1);
        // The maximum is found anew: loading may hold more for a moment.
        let steps = || {
            for step in 0..2 {
                trainer.step(step, &batch, 1e-4).unwrap();
            }
        };
        peak(steps)
    });
    let more = quantize.map(|format| format!("quantize = {}\nquantize_head = true", json!(format)));
    let parts = &forecast(dir.path(), dtype, lengths, &more.unwrap_or_default())["memory_bytes"];
    let part = |name: &str| parts[name].as_u64().unwrap() as f64;
    let planned = part("weights") + part("trained") + part("activations").max(part("logits"));
    println!("{what}, {dtype:?}: {held} bytes held, {planned} planned: {parts}");
    let ratio = held as f64 / planned;
    assert!((0.8..1.2).contains(&ratio), "{what}, {dtype:?}: {held} bytes are held, {planned} were planned");
}

#[test]
fn a_step_holds_what_was_planned_for_a_gpu() {
    let _alone = through_kernels();
    // Its scores are held: the kernel has no room for such heads.
    let mut wide = llama();
    wide["head_dim"] = 264.into();
    let models = [("llama", llama()), ("mixture", mixture()), ("delta net", delta_net()), ("heads of 264", wide)];
    for (what, config) in &models {
        for dtype in [DType::F32, DType::BF16] {
            assert_planned(what, config, dtype, &[128; 8], None);
        }
    }
    assert_planned("mixture in slices", &wide_mixture(), DType::BF16, &[64; 36], None);
}

/// Each sequence in nearly twice as many places; and a long one with short ones, in two groups.
#[test]
fn a_step_with_padding_holds_what_was_planned() {
    let _alone = through_kernels();
    for (what, lengths) in [("66 of 128", &[66; 12][..]), ("groups", &[250, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30])] {
        for dtype in [DType::F32, DType::BF16] {
            assert_planned(what, &delta_net(), dtype, lengths, None);
        }
    }
}

/// A few tokens, so that weights are most: those of blocks; and of a head that is larger than they are. In f32, as a CPU's products
/// widen narrower weights for themselves.
#[test]
fn a_step_on_quantised_weights_holds_what_was_planned() {
    let _alone = through_kernels();
    let mut large = llama();
    (large["hidden_size"], large["intermediate_size"]) = (512.into(), 1024.into());
    let mut head = llama();
    head["vocab_size"] = 8192.into();
    for format in [Quantize::Nf4, Quantize::Q8_0] {
        for (what, config) in [("large blocks", &large), ("large head", &head)] {
            assert_planned(&format!("{what} in {format:?}"), config, DType::F32, &[16; 4], Some(format));
        }
    }
}

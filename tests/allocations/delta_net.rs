//! Gated DeltaNets, which have no kernel for the delta rule: blocks of values that a step makes, beside the launches that a dry run predicts.

use super::allocator::LARGE;
use super::{forecast, samples, through_kernels, trainer_of, write};
use asft::model::Weights;
use candle_core::DType;
use std::sync::atomic::Ordering::SeqCst;

/// Of Qwen 3.5's sizes, an eighth of them: a layer of attention and so many gated DeltaNets.
fn config(layers: usize) -> serde_json::Value {
    let kinds: Vec<&str> = std::iter::once("full_attention").chain(vec!["linear_attention"; layers]).collect();
    serde_json::json!({
        "model_type": "qwen3_5_text", "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 64, "num_hidden_layers": kinds.len(), "vocab_size": 512,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
        "linear_value_head_dim": 16, "layer_types": kinds,
    })
}

/// Blocks of values that a second step takes, and predicted launches of gated DeltaNets, on samples of so many tokens.
fn taken(layers: usize, lengths: &[u32]) -> [f64; 2] {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &config(layers));
    let mut trainer = trainer_of(dir.path(), DType::BF16, Weights::Frozen, 0.05, 1);
    let batch = samples(lengths);
    trainer.step(0, &batch, 1e-4).unwrap();
    let before = LARGE.load(SeqCst);
    trainer.step(1, &batch, 1e-4).unwrap();
    let blocks = LARGE.load(SeqCst) - before;
    let predicted = &forecast(dir.path(), DType::BF16, lengths, "")["prediction"]["parts"]["delta_net"]["launches"];
    [blocks as f64, predicted.as_f64().unwrap()]
}

/// The same of a second gated DeltaNet alone.
fn of_a_layer(lengths: &[u32]) -> [f64; 2] {
    let [one, two] = [1, 2].map(|layers| taken(layers, lengths));
    [two[0] - one[0], two[1] - one[1]]
}

/// Few blocks, and few more for each further chunk.
#[test]
fn a_gated_delta_net_takes_few_launches() {
    let _alone = through_kernels();
    let [[short, _], [long, _]] = [100, 500].map(|length| of_a_layer(&[length; 2]));
    println!("{short} blocks a layer and step in two chunks, {long} in eight");
    let each = (long - short) / 6.0;
    assert!(short <= 600.0 && each <= 9.0, "{short} blocks in two chunks, {each} for each other");
}

/// Sequences of unlike length, which are padded in groups, take as many more blocks as a dry run predicts more launches.
#[test]
fn groups_of_unlike_sequences_take_what_is_predicted() {
    let _alone = through_kernels();
    let [one, two, three] =
        [&[320; 8][..], &[320, 40, 40, 40, 40, 40, 40, 40], &[320, 90, 90, 90, 90, 20, 20, 20, 20]].map(of_a_layer);
    println!("blocks and launches of one group {one:?}, of two {two:?}, of three {three:?}");
    for (groups, more) in [(1, two), (2, three)] {
        let [blocks, launches] = [more[0] - one[0], more[1] - one[1]];
        let ratio = blocks / launches;
        assert!((0.9..1.1).contains(&ratio), "{groups} more groups: {blocks} blocks, {launches} launches predicted");
    }
}

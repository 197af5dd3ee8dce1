//! A full training step of a model of SmolLM2-135M's shape with random weights, against the GEMM rate, and against the
//! time of its own matrix products alone: the same shapes, every layer's own weights, nothing else. For each step it
//! prints the share of the products with frozen weights, and then that of all products, LoRA's and attention's
//! included.
//!
//! `step -- scaling` takes one sequence of growing length instead, and says how much of the time is matrix products,
//! attention and the rest, each measured by itself, and how much memory the step needed.

mod support;

use asft::method::Penalize;
use asft::model::ModelSpec;
use asft::names::Targets;
use asft::ops::attention::{self, Layout, Shape};
use asft::ops::linear;
use asft::ops::machine::best;
use candle_core::Tensor;
use serde_json::json;
use std::path::Path;
use support::model::{batch, list, random_model, trainer};
use support::{Limits, in_pool, saved, tensor};

const BATCH: usize = 4;
const LENGTH: usize = 256;
/// Tokens of a sequence, ascending because a process's peak memory never falls.
const LENGTHS: [usize; 5] = [128, 256, 512, 1024, 2048];

fn main() -> anyhow::Result<()> {
    in_pool(run)
}

fn run() -> anyhow::Result<()> {
    let limits = Limits::measure();
    let dir = tempfile::tempdir()?;
    let spec = random_model(dir.path())?;
    if std::env::args().any(|argument| argument == "scaling") {
        return scaling(dir.path(), &spec);
    }
    let batch = [batch(spec.vocab_size, BATCH, LENGTH)];
    let tokens = BATCH * LENGTH;
    let products = products(&spec, tokens)?;
    let linears: usize = shapes(&spec).iter().map(|(d_out, d_in)| d_out * d_in).sum();
    saved::row(json!({"name": "products alone", "seconds": products}));
    println!(
        "{BATCH} x {LENGTH} tokens; the products of a forward and a backward pass alone: {:.0} ms\n",
        products * 1e3
    );
    for (targets, name) in [(list(&["q_proj", "v_proj"]), "q, v"), (Targets::AllLinear, "all linears")] {
        for checkpointing in [false, true] {
            for penalize in [Penalize::None, Penalize::All] {
                let mut trainer = trainer(dir.path(), &spec, &targets, checkpointing, penalize)?;
                let mut step = 0;
                let passes = if checkpointing { 3 } else { 2 };
                let head = spec.vocab_size * spec.hidden_size;
                let flops = 2.0 * (tokens * (linears * passes + head * 2)) as f64;
                let title =
                    format!("{name}{}, penalty {penalize:?}", if checkpointing { ", checkpointing" } else { "" });
                let seconds = limits.flops(&title, flops, || {
                    trainer.step(step, &batch, 1e-4).expect("a step of finite numbers");
                    step += 1;
                });
                let trained: usize = trainer.model.parameters().values().map(|x| x.elem_count()).sum();
                // Forward, and the gradients of the input and of the parameter.
                let lora = 2.0 * (tokens * trained * (passes + 1)) as f64;
                let all = flops + lora + attention_flops(&spec, passes);
                println!("{:57} {}", "", limits.share(all, seconds));
                saved::row(json!({"name": format!("{title}, with all products"), "seconds": seconds, "flops": all}));
            }
        }
    }
    Ok(())
}

/// (d_out, d_in) of every linear of the blocks.
fn shapes(spec: &ModelSpec) -> Vec<(usize, usize)> {
    spec.linear_modules().iter().filter_map(|module| asft::adapter::module_shape(spec, module)).collect()
}

/// Seconds of one forward and one input-gradient product for every linear and for the head.
fn products(spec: &ModelSpec, tokens: usize) -> anyhow::Result<f64> {
    let mut all = shapes(spec);
    all.push((spec.vocab_size, spec.hidden_size));
    let operands: Vec<[Tensor; 3]> = all
        .iter()
        .map(|&(d_out, d_in)| [tensor(&[d_out, d_in], 1), tensor(&[tokens, d_in], 2), tensor(&[tokens, d_out], 3)])
        .collect();
    Ok(best(|| {
        for [weight, x, dy] in &operands {
            drop(linear::forward(x, weight, None));
            drop(linear::backward_input(dy, weight));
        }
    }))
}

/// Operations of every layer's attention over the batch: scores and sums over keys in each forward pass, five products in
/// the backward one, all of them over half of the pairs.
fn attention_flops(spec: &ModelSpec, passes: usize) -> f64 {
    let products = 2 * (passes - 1) + 5;
    let pairs = BATCH * LENGTH * (LENGTH + 1) / 2;
    2.0 * (products * pairs * spec.num_attention_heads * spec.head_dim * spec.num_hidden_layers) as f64
}

/// Seconds of every layer's attention over one sequence, forward and backward.
fn attentions(spec: &ModelSpec, length: usize) -> anyhow::Result<f64> {
    let (heads, kv_heads, head_dim) = (spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim);
    let shape = Shape { heads, kv_heads, head_dim, scale: spec.attention_scale, window: None, cap: None };
    let layout = Layout::new(&[length]);
    let (q, dy) = (tensor(&[length, heads * head_dim], 1), tensor(&[length, heads * head_dim], 2));
    let (k, v) = (tensor(&[length, kv_heads * head_dim], 3), tensor(&[length, kv_heads * head_dim], 4));
    let saved = attention::forward(&q, &k, &v, shape, &layout)?.1;
    let one = best(|| {
        drop(attention::forward(&q, &k, &v, shape, &layout));
        drop(attention::backward(&saved, &dy, shape, &layout));
    });
    Ok(one * spec.num_hidden_layers as f64)
}

/// A step of LoRA on q, v over one sequence, by its length.
fn scaling(dir: &Path, spec: &ModelSpec) -> anyhow::Result<()> {
    let mut trainer = trainer(dir, spec, &list(&["q_proj", "v_proj"]), false, Penalize::None)?;
    let steps = LENGTHS.map(|length| {
        let batch = [batch(spec.vocab_size, 1, length)];
        let seconds = best(|| {
            trainer.step(0, &batch, 1e-4).expect("a step of finite numbers");
        });
        (length, seconds, asft::memory::peak_bytes() as f64)
    });
    drop(trainer);
    println!(
        "{:>7} {:>9} {:>9} {:>13} {:>15} {:>12} {:>9} {:>15}",
        "tokens", "step, ms", "ms/token", "products, ms", "attention, ms", "rest, ms", "peak, GB", "more, MB/token"
    );
    let mut before: Option<(usize, f64)> = None;
    for (length, seconds, peak) in steps {
        let (products, attention) = (products(spec, length)?, attentions(spec, length)?);
        let part = |part: f64| format!("{:.0} ({:.0}%)", part * 1e3, 100.0 * part / seconds);
        let more = before.map(|(shorter, less)| format!("{:.2}", (peak - less) / 1e6 / (length - shorter) as f64));
        println!(
            "{length:>7} {:>9.0} {:>9.3} {:>13} {:>15} {:>12} {:>9.2} {:>15}",
            seconds * 1e3,
            seconds * 1e3 / length as f64,
            part(products),
            part(attention),
            part(seconds - products - attention),
            peak / 1e9,
            more.unwrap_or_default()
        );
        saved::row(json!({
            "name": format!("{length} tokens"), "seconds": seconds, "products_seconds": products, "attention_seconds": attention,
            "peak_bytes": peak,
        }));
        before = Some((length, peak));
    }
    Ok(())
}

//! Every primitive forward and backward at SmolLM2-135M's and Qwen2-7B's widths, against the limit that bounds it.

mod support;

use asft::ops::activation::Activation;
use asft::ops::attention::{self, Layout, Shape};
use asft::ops::rope::{self, Angles, Stretch};
use asft::ops::sum::add;
use asft::ops::weight::Weight;
use asft::ops::{cross_entropy, dropout, gated_mlp, linear, rms_norm};
use asft::quant::ggml::GgmlType;
use asft::quant::{Format, Kind};
use candle_core::{DType, Device};
use support::{Limits, in_pool, saved, tensor};

struct Width {
    name: &'static str,
    rows: usize,
    hidden: usize,
    inner: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
}

const WIDTHS: [Width; 2] = [
    Width { name: "135M", rows: 1024, hidden: 576, inner: 1536, heads: 9, kv_heads: 3, vocab: 49152 },
    Width { name: "7B", rows: 512, hidden: 3584, inner: 18944, heads: 28, kv_heads: 4, vocab: 152_064 },
];

fn main() -> anyhow::Result<()> {
    in_pool(run)
}

fn run() -> anyhow::Result<()> {
    let limits = Limits::measure();
    for width in &WIDTHS {
        println!("{}: {} rows, hidden_size {}", width.name, width.rows, width.hidden);
        saved::group(width.name);
        linears(&limits, width)?;
        elementwise(&limits, width)?;
        attentions(&limits, width)?;
        heads(&limits, width)?;
        decoding(&limits, width)?;
        println!();
    }
    Ok(())
}

fn linears(limits: &Limits, w: &Width) -> anyhow::Result<()> {
    let kv = w.kv_heads * w.hidden / w.heads;
    for (name, d_in, d_out) in
        [("q", w.hidden, w.hidden), ("k", w.hidden, kv), ("up", w.hidden, w.inner), ("down", w.inner, w.hidden)]
    {
        let (x, weight, dy) = (tensor(&[w.rows, d_in], 1), tensor(&[d_out, d_in], 2), tensor(&[w.rows, d_out], 3));
        let flops = 2.0 * (w.rows * d_in * d_out) as f64;
        limits.flops(&format!("linear {name} forward"), flops, || drop(linear::forward(&x, &weight, None)));
        limits.flops(&format!("linear {name} input gradient"), flops, || drop(linear::backward_input(&dy, &weight)));
        limits.flops(&format!("linear {name} weight gradient"), flops, || drop(linear::backward_weight(&dy, &x)));
    }
    Ok(())
}

fn elementwise(limits: &Limits, w: &Width) -> anyhow::Result<()> {
    let (n, d) = (w.rows, w.hidden);
    let (x, y, weight) = (tensor(&[n, d], 1), tensor(&[n, d], 2), tensor(&[d], 3));
    limits.bytes("add", 3 * n * d, || drop(add(&x, &y)));
    limits.bytes("dropout", 2 * n * d, || drop(dropout::apply(&x, 0.1, 7)));
    limits.bytes("rms_norm forward", 2 * n * d, || drop(rms_norm::forward(&x, &weight, 1e-5)));
    let saved = rms_norm::forward(&x, &weight, 1e-5)?.1;
    limits.bytes("rms_norm backward", 3 * n * d, || drop(rms_norm::backward_input(&saved, &weight, &y)));
    let half = d / w.heads / 2;
    let stretch = Stretch { start: 0, length: n, frequencies: vec![0.01; half], magnitude: 1.0 };
    let angles = Angles::new(&[stretch], &Device::Cpu)?;
    limits.bytes("rope", 2 * n * (d + half), || drop(rope::forward(&x, &angles)));
    let (gate, up, dy) = (tensor(&[n, w.inner], 4), tensor(&[n, w.inner], 5), tensor(&[n, w.inner], 6));
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let inner = n * w.inner;
        limits.bytes(&format!("gated_mlp {activation:?} forward"), 3 * inner, || {
            drop(gated_mlp::forward(&gate, &up, activation));
        });
        limits.bytes(&format!("gated_mlp {activation:?} backward"), 5 * inner, || {
            drop(gated_mlp::backward(&gate, &up, &dy, activation));
        });
    }
    Ok(())
}

fn attentions(limits: &Limits, w: &Width) -> anyhow::Result<()> {
    let head_dim = w.hidden / w.heads;
    let shape = Shape {
        heads: w.heads,
        kv_heads: w.kv_heads,
        head_dim,
        scale: (head_dim as f64).powf(-0.5),
        window: None,
        cap: None,
    };
    for length in [128, 512, 2048] {
        let rows = length.max(w.rows);
        let layout = Layout::new(&vec![length; rows / length]);
        let (q, dy) = (tensor(&[rows, w.hidden], 1), tensor(&[rows, w.hidden], 2));
        let (k, v) = (tensor(&[rows, w.kv_heads * head_dim], 3), tensor(&[rows, w.kv_heads * head_dim], 4));
        // What causality leaves: half of the square, and a product's 2 operations for each element and column of a
        // head.
        let product = (rows * length * w.hidden) as f64;
        limits.flops(&format!("attention forward, length {length}"), 2.0 * product, || {
            drop(attention::forward(&q, &k, &v, shape, &layout));
        });
        let saved = attention::forward(&q, &k, &v, shape, &layout)?.1;
        limits.flops(&format!("attention backward, length {length}"), 5.0 * product, || {
            drop(attention::backward(&saved, &dy, shape, &layout));
        });
    }
    Ok(())
}

fn heads(limits: &Limits, w: &Width) -> anyhow::Result<()> {
    let (rows, scale) = (w.rows / 4, 1.0 / w.rows as f64);
    let (hidden, head) = (tensor(&[rows, w.hidden], 1), tensor(&[w.vocab, w.hidden], 2));
    let targets: Vec<u32> = (0..rows as u32).collect();
    let flops = 2.0 * (rows * w.hidden * w.vocab) as f64;
    limits.flops("cross_entropy forward", flops, || drop(cross_entropy::forward(&hidden, &head, &targets, None)));
    limits.flops("cross_entropy forward and backward", 2.0 * flops, || {
        drop(cross_entropy::forward_backward(&hidden, &head, &targets, scale, false, None));
    });
    Ok(())
}

/// One row with weights in bf16 and quantised: bytes of the weight. (Small ones are in a cache here, and not where a whole model
/// is decoded with.)
fn decoding(limits: &Limits, w: &Width) -> anyhow::Result<()> {
    let formats = [Format::FourBit(Kind::Nf4), Format::Ggml(GgmlType::Q8_0), Format::Ggml(GgmlType::Q4K)];
    for (name, d_in, d_out) in [("q", w.hidden, w.hidden), ("up", w.hidden, w.inner), ("down", w.inner, w.hidden)] {
        let (x, dense) = (tensor(&[1, d_in], 1).to_dtype(DType::BF16)?, tensor(&[d_out, d_in], 2));
        for rows in [8, 32] {
            let (x, flops) = (tensor(&[rows, d_in], 1), 2.0 * (rows * d_in * d_out) as f64);
            limits.flops(&format!("{rows} rows by {name}, f32"), flops, || drop(linear::forward(&x, &dense, None)));
        }
        let values = dense.flatten_all()?.to_vec1::<f32>()?;
        let dense = dense.to_dtype(DType::BF16)?;
        limits.bytes(&format!("one row by {name}, bf16"), values.len() / 2, || drop(linear::forward(&x, &dense, None)));
        for format in formats {
            // Where rows are whole blocks.
            let Ok(matrix) = format.quantise((d_out, d_in), &values) else { continue };
            let (bytes, weight) = (matrix.bytes(), Weight::quantised(matrix, &Device::Cpu)?);
            limits
                .bytes(&format!("one row by {name}, {format}"), bytes / 4, || drop(linear::forward(&x, &weight, None)));
        }
    }
    Ok(())
}

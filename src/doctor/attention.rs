//! Attention: grouped heads, windows, soft-caps, packed sequences of uneven length, keys from a cache, long sequences.

use super::check::Check;
use super::subject::{Depth, Subject, Tolerance, Worst, exact, oracle};
use crate::device;
use crate::ops::attention::{Layout, Shape, Span};
use crate::ops::gpu;
use anyhow::Result;
use candle_core::{DType, Device, Tensor};

pub const CHECKS: &[Check] = &[
    Check::new(
        "attention",
        "packed sequences, groups, windows, soft-caps",
        Tolerance { wide: 256.0, narrow: 12.0 },
        packed,
    )
    .by("attention", || gpu::ATTENTION.switch_off()),
    Check::new(
        "long attention",
        "one sequence as long as memory allows",
        Tolerance { wide: 512.0, narrow: 24.0 },
        long,
    )
    .by("attention", || gpu::ATTENTION.switch_off()),
];

const PLAIN: Shape = Shape { heads: 4, kv_heads: 2, head_dim: 16, scale: 0.25, window: None, cap: None };
/// Of a long sequence's queries those that are compared: as many from each of three places.
const COMPARED: usize = 3;
/// A long sequence on the CPU and in a short check: more keys than a block of threads.
const LONG_ON_CPU: usize = 2_053;
/// With two heads, more than 2³¹ scores.
const LONGEST: usize = 33_029;
/// f32 copies of the scores that exist at once.
const SCORE_COPIES: usize = 6;

/// q [chosen rows, Hq · D], k, v: the output of the `chosen` queries of each span, head by head, in full matrices.
fn naive(v: &[Tensor], shape: Shape, spans: &[Span], chosen: &[Vec<usize>]) -> candle_core::Result<Tensor> {
    let (mut rows, mut next) = (vec![], 0);
    for (span, chosen) in spans.iter().zip(chosen) {
        let seen = |query: usize, key: usize| {
            let position = query + span.k_len - span.q_len;
            key <= position && shape.window.is_none_or(|window| key + window > position)
        };
        let mask: Vec<f64> = chosen
            .iter()
            .flat_map(|&query| (0..span.k_len).map(move |key| if seen(query, key) { 0.0 } else { -1e30 }))
            .collect();
        let mask = Tensor::from_vec(mask, (chosen.len(), span.k_len), &Device::Cpu)?;
        let head = |h: usize| {
            let d = shape.head_dim;
            let of = |x: &Tensor, h: usize, start: usize, length: usize| {
                x.narrow(0, start, length)?.narrow(1, h * d, d)?.contiguous()
            };
            let shared = h / (shape.heads / shape.kv_heads);
            let q = of(&v[0], h, next, chosen.len())?;
            let (k, value) =
                (of(&v[1], shared, span.k_start, span.k_len)?, of(&v[2], shared, span.k_start, span.k_len)?);
            let scores = (q.matmul(&k.t()?)? * shape.scale)?;
            let scores = if let Some(cap) = shape.cap { ((scores / cap)?.tanh()? * cap)? } else { scores };
            candle_nn::ops::softmax(&(scores + &mask)?, 1)?.matmul(&value)
        };
        rows.push(Tensor::cat(&(0..shape.heads).map(head).collect::<candle_core::Result<Vec<_>>>()?, 1)?);
        next += chosen.len();
    }
    Tensor::cat(&rows, 0)
}

fn packed(subject: &Subject, worst: &mut Worst) -> Result<()> {
    let shape = |heads, kv_heads, head_dim: usize| {
        let scale = (head_dim as f64).powf(-0.5) * 4.0;
        Shape { heads, kv_heads, head_dim, scale, ..PLAIN }
    };
    // A window much shorter than the sequences leaves whole tiles of scores unseen.
    let short = [
        (shape(4, 2, 16), vec![37, 1, 68]),
        (Shape { window: Some(7), cap: Some(2.0), ..shape(4, 1, 64) }, vec![131, 40]),
    ];
    let more = [
        (Shape { window: Some(2), ..shape(3, 3, 80) }, vec![300]),
        (Shape { cap: Some(5.0), ..shape(6, 2, 128) }, vec![129, 64, 63]),
        (shape(7, 1, 33), vec![2, 2, 2, 97]),
    ];
    for (shape, lengths) in subject.sizes(&short, &more) {
        let layout = Layout::new(&lengths);
        let chosen: Vec<Vec<usize>> = lengths.iter().map(|&length| (0..length).collect()).collect();
        compare(subject, worst, shape, &layout, &chosen, &format!("{lengths:?} with {shape:?}"))?;
    }
    if subject.depth == Depth::Full {
        // The last 5 queries of a sequence whose other keys were computed before.
        let layout = Layout::cached(vec![Span { q_start: 0, q_len: 5, k_start: 0, k_len: 90 }]);
        compare(subject, worst, PLAIN, &layout, &[(0..5).collect()], "5 of 90")?;
    }
    Ok(())
}

fn long(subject: &Subject, worst: &mut Worst) -> Result<()> {
    let shape = Shape { heads: 2, kv_heads: 1, head_dim: 64, ..PLAIN };
    let length = if subject.depth == Depth::Full { longest(&subject.device, shape.heads) } else { LONG_ON_CPU };
    // Those that see much: a key's gradient then is of the size of others'.
    let starts = [length / 3, length / 2, length - COMPARED];
    let chosen = starts.into_iter().flat_map(|start| start..start + COMPARED).collect();
    compare(subject, worst, shape, &Layout::new(&[length]), &[chosen], &format!("{length} tokens"))
}

/// The longest sequence whose scores a quarter of the device's memory holds.
fn longest(device: &Device, heads: usize) -> usize {
    let memory = device::memory(device).filter(|_| !device.is_cpu());
    let scores = memory.map_or(0, |memory| memory.available / 4 / (heads * SCORE_COPIES * size_of::<f32>()));
    scores.isqrt().clamp(LONG_ON_CPU, LONGEST)
}

/// Compares the `chosen` queries' output, and the gradients that dy of these rows alone gives: so every gradient of a
/// long sequence's keys is compared, and its reference costs little.
fn compare(
    subject: &Subject,
    worst: &mut Worst,
    shape: Shape,
    layout: &Layout,
    chosen: &[Vec<usize>],
    what: &str,
) -> Result<()> {
    let queries: usize = layout.spans.iter().map(|span| span.q_len).sum();
    let keys = layout.spans.iter().map(|span| span.k_start + span.k_len).max().unwrap_or(0);
    let width = shape.heads * shape.head_dim;
    let q = subject.values(&[queries, width], 1)?;
    let [k, v] = [2, 3].map(|seed| subject.values(&[keys, shape.kv_heads * shape.head_dim], seed));
    let (k, v) = (k?, v?);
    let rows = layout.spans.iter().zip(chosen);
    let rows: Vec<u32> = rows.flat_map(|(span, of)| of.iter().map(|row| (span.q_start + row) as u32)).collect();
    let rows = Tensor::new(rows, &Device::Cpu)?;
    let dy_rows = exact(&subject.values(&[rows.elem_count(), width], 4)?)?;
    let spread = |x: &Tensor| Tensor::zeros((queries, width), DType::F64, &Device::Cpu)?.index_add(&rows, x, 0);
    let dy = spread(&dy_rows)?.to_dtype(subject.dtype)?.to_device(&subject.device)?;
    let (y, saved) = (subject.operations.attention)(&q, &k, &v, shape, layout)?;
    let (dq, dk, dv) = (subject.operations.attention_backward)(&saved, &dy, shape, layout)?;
    let chosen_of = |x: &Tensor| Ok::<_, anyhow::Error>(exact(x)?.index_select(&rows, 0)?);
    let (expected, gradients) =
        oracle(&[&chosen_of(&q)?, &k, &v], &dy_rows, |v| naive(v, shape, &layout.spans, chosen))?;
    let [d_chosen, exact_dk, exact_dv] = &gradients[..] else { anyhow::bail!("three inputs, three gradients") };
    worst.note(format!("o of {what}"), subject.dtype, &chosen_of(&y)?, &expected)?;
    for (name, got, exact) in [("dq", &dq, &spread(d_chosen)?), ("dk", &dk, exact_dk), ("dv", &dv, exact_dv)] {
        worst.note(format!("{name} of {what}"), subject.dtype, got, exact)?;
    }
    Ok(())
}

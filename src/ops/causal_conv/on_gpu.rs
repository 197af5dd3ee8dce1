//! The GPU's kernels (gpu/causal_conv.cu) for whole sequences: a thread for a few channels of each row.

#![allow(unsafe_code, reason = "GPU kernels")]

use crate::ops::attention::{Layout, Span};
use crate::ops::gpu::{Arg, CAUSAL_CONV, Launch, PACK, unwritten};
use crate::ops::traffic::counted;
use anyhow::Result;
use candle_core::{DType, Tensor};

/// Widest window: half of a number in the table of rows that are near.
const MAX_WIDTH: usize = 1 << 16;
/// Most parts in which the weight's gradient is summed, and rows that make it worth to sum another.
const MAX_PARTS: usize = 64;
const ROWS_PER_PART: usize = 32;

/// Whether the kernels serve these, of one type but for the weight, and the weight in f32.
pub fn serves(rows: &[&Tensor], weight: &Tensor) -> bool {
    let alike = rows.windows(2).all(|pair| pair[0].dtype() == pair[1].dtype());
    let fits = weight.dtype() == DType::F32 && weight.dims().last().is_some_and(|&width| width <= MAX_WIDTH);
    alike && fits && CAUSAL_CONV.serve(&[rows, &[weight]].concat())
}

/// How many rows of its sequence are before and after each row, none beyond the window: [N], u32.
fn near(spans: &[Span], width: usize) -> Vec<u32> {
    let kept = width - 1;
    let of_span = |span: &Span| {
        let length = span.q_len;
        (0..length).map(move |t| (t.min(kept) | (length - 1 - t).min(kept) << 16) as u32)
    };
    spans.iter().flat_map(of_span).collect()
}

/// What every launch is given besides its tensors.
struct Sizes {
    near: Tensor,
    channels: usize,
    width: usize,
    chunks: usize,
    places: usize,
}

impl Sizes {
    fn of(x: &Tensor, weight: &Tensor, layout: &Layout) -> Result<Self> {
        let ((n, channels), width) = (x.dims2()?, weight.dim(1)?);
        let near = layout.kept(format!("causal convolution: near, {width}"), |spans| {
            Ok(Tensor::new(near(spans, width), x.device())?)
        })?;
        let chunks = channels.div_ceil(PACK);
        Ok(Self { near, channels, width, chunks, places: n * chunks })
    }

    /// With a thread for each place; x gives the type.
    fn run(&self, entry: &str, x: DType, tensors: &[Arg<'_>]) -> Result<()> {
        let numbers = [self.channels, self.width, self.chunks].map(Arg::Small);
        let arguments = [tensors, &numbers, &[Arg::Large(self.places as u64)]].concat();
        // SAFETY: the callers' tensors are [N, C] and the weight [C, K] by `super::check`, which has compared the spans that `near` is made
        // of with N: a window has rows of these only. What is new is written as a whole.
        unsafe { Launch::threads(&CAUSAL_CONV, entry, x, self.places).run(&arguments) }
    }
}

pub fn forward(x: &Tensor, weight: &Tensor, layout: &Layout) -> Result<Tensor> {
    let sizes = Sizes::of(x, weight, layout)?;
    // SAFETY: the kernel writes all of y.
    let y = unsafe { unwritten(x.shape(), x.dtype(), x.device())? };
    let tensors = [Arg::In(x), Arg::In(weight), Arg::In(&sizes.near), Arg::Out(&y)];
    sizes.run("causal_conv_forward", x.dtype(), &tensors)?;
    Ok(y)
}

/// (dx, dw if it is wanted)
pub fn backward(
    x: &Tensor,
    weight: &Tensor,
    dy: &Tensor,
    layout: &Layout,
    wants_weight: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (sizes, n) = (Sizes::of(x, weight, layout)?, x.dim(0)?);
    // SAFETY: the kernels write all of both.
    let [dp, dx] = [DType::F32, x.dtype()].map(|dtype| unsafe { unwritten(x.shape(), dtype, x.device()) });
    let (dp, dx) = (dp?, dx?);
    let near = Arg::In(&sizes.near);
    let tensors = [Arg::In(x), Arg::In(weight), near, Arg::In(dy), Arg::Out(&dp)];
    sizes.run("causal_conv_slopes", x.dtype(), &tensors)?;
    let tensors = [Arg::In(&dp), Arg::In(weight), near, Arg::Out(&dx)];
    sizes.run("causal_conv_backward", x.dtype(), &tensors)?;
    if !wants_weight {
        return Ok((dx, None));
    }
    let parts = n.div_ceil(ROWS_PER_PART).clamp(1, MAX_PARTS);
    let launch = Launch::map(&CAUSAL_CONV, "causal_conv_backward_weight", x.dtype(), sizes.channels).in_parts(parts);
    // SAFETY: as above; the kernel writes all parts.
    let sums = unsafe {
        let sums = unwritten((parts, sizes.width, sizes.channels), DType::F32, x.device())?;
        let numbers = [n, sizes.channels, sizes.width].map(Arg::Small);
        launch.run(&[[Arg::In(x), Arg::In(&dp), near, Arg::Out(&sums)].as_slice(), &numbers].concat())?;
        sums
    };
    Ok((dx, Some(counted(sums.sum(0)?, &[&sums]).t()?.contiguous()?)))
}

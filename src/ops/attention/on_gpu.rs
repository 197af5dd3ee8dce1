//! The GPU's kernels (gpu/attention.cu): a block for each tile of rows and head, scores in registers.

#![allow(unsafe_code, reason = "GPU kernels")]

use super::layout::Layout;
use super::saved::Saved;
use super::shape::Shape;
use super::tiles::{NO_WINDOW, Side, TILE_NUMBERS};
use crate::ops::gpu::{ATTENTION, Arg, Launch, unwritten};
use anyhow::Result;
use candle_core::{DType, Tensor};

/// Most values of a head.
pub const MAX_HEAD_DIM: usize = 256;

/// Rows of a warp's tile, and threads of a warp.
const WARP_ROWS: usize = 16;
const WARP: usize = 32;
/// Values of a row beyond its head, so that the rows that a warp reads at once begin in different banks.
const PADDING: usize = 8;
/// Most rows of the other kind that the blocks of keys read at a time.
const MAX_KEYS_STEP: usize = 32;

/// Whether the kernels serve heads of this shape.
pub fn serves(tensors: &[&Tensor], shape: Shape) -> bool {
    let alike = tensors.windows(2).all(|pair| pair[0].dtype() == pair[1].dtype());
    alike && shape.head_dim <= MAX_HEAD_DIM && ATTENTION.serve(tensors)
}

/// The sizes of the kernels for one type and head: as OWN and STRIDE_OF in attention.cu.
#[derive(Clone, Copy)]
struct Kernel {
    dtype: DType,
    /// Values of a head that the kernel has places for.
    size: usize,
    rows: usize,
}

impl Kernel {
    fn of(dtype: DType, head_dim: usize) -> Self {
        let size = [64, 128].into_iter().find(|&size| head_dim <= size).unwrap_or(256);
        let rows = if dtype == DType::F32 { 32 } else { 64 };
        Self { dtype, size, rows: if size > 128 { rows / 2 } else { rows } }
    }

    fn shared(self, rows: usize) -> usize {
        rows * (self.size + PADDING) * self.dtype.size_in_bytes()
    }

    /// For every tile of a side and head.
    fn launch(self, entry: &str, (tiles, heads, parts): (usize, usize, usize), shared: usize) -> Launch {
        let block = self.rows / WARP_ROWS * WARP;
        Launch::new(&ATTENTION, format!("{entry}_{}", self.size), self.dtype, [tiles, heads, parts], (block, shared))
    }
}

/// The last arguments of every entry.
fn numbers(n: usize, shape: Shape) -> [Arg<'static>; 7] {
    [
        Arg::Small(n),
        Arg::Small(shape.heads),
        Arg::Small(shape.kv_heads),
        Arg::Small(shape.head_dim),
        Arg::Small(shape.window.unwrap_or(NO_WINDOW).min(NO_WINDOW)),
        Arg::Float(shape.scale),
        Arg::Float(shape.cap.unwrap_or(0.0)),
    ]
}

/// (o, log-sum-exp of every row [Hq, Nq] in f32)
pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor, shape: Shape, layout: &Layout) -> Result<(Tensor, Tensor)> {
    let (n, kernel) = (q.dim(0)?, Kernel::of(q.dtype(), shape.head_dim));
    let tiles = layout.tiles(Side::Queries, kernel.rows, q.device())?;
    let grid = (tiles.elem_count() / TILE_NUMBERS, shape.heads, 1);
    let launch = kernel.launch("attention_forward", grid, kernel.shared(3 * kernel.rows));
    // SAFETY: `Layout::check` has compared all sizes and spans; the spans cover all queries, so all of o and the log-sum-exp are
    // written.
    unsafe {
        let o = unwritten(q.shape(), q.dtype(), q.device())?;
        let lse = unwritten((shape.heads, n), DType::F32, q.device())?;
        let tensors = [Arg::In(q), Arg::In(k), Arg::In(v), Arg::In(&tiles), Arg::Out(&o), Arg::Out(&lse)];
        launch.run(&[tensors.as_slice(), &numbers(n, shape)].concat())?;
        Ok((o, lse))
    }
}

/// (dq, dk, dv) from dy and the log-sum-exp of every row.
pub fn backward(
    saved: &Saved,
    lse: &Tensor,
    dy: &Tensor,
    shape: Shape,
    layout: &Layout,
) -> Result<(Tensor, Tensor, Tensor)> {
    let Saved { q, k, v, output, .. } = saved;
    let dy = dy.to_dtype(q.dtype())?;
    let (n, kernel) = (q.dim(0)?, Kernel::of(q.dtype(), shape.head_dim));
    let tiles = |side| layout.tiles(side, kernel.rows, q.device());
    let (of_queries, of_keys) = (tiles(Side::Queries)?, tiles(Side::Keys)?);
    let count = |tiles: &Tensor| tiles.elem_count() / TILE_NUMBERS;
    let covered = layout.spans.iter().map(|span| span.k_len).sum::<usize>() == k.dim(0)?;
    let delta = Launch::threads(&ATTENTION, "attention_delta", q.dtype(), n * shape.heads * WARP);
    let grid = (count(&of_queries), shape.heads, 1);
    let queries = kernel.launch("attention_backward_queries", grid, kernel.shared(4 * kernel.rows));
    let step = kernel.rows.min(MAX_KEYS_STEP);
    let shared = kernel.shared(2 * kernel.rows + 2 * step) + 2 * step * size_of::<f32>();
    let grid = (count(&of_keys), shape.kv_heads, kernel.size.div_ceil(128));
    let keys = kernel.launch("attention_backward_keys", grid, shared);
    // SAFETY: as above; dk and dv are all written if the spans cover all keys, and zero where they do not.
    unsafe {
        let sums = unwritten((shape.heads, n), DType::F32, q.device())?;
        delta.run(&[
            Arg::In(output),
            Arg::In(&dy),
            Arg::Out(&sums),
            Arg::Small(n),
            Arg::Small(shape.heads),
            Arg::Small(shape.head_dim),
        ])?;
        let inputs =
            |tiles| [Arg::In(q), Arg::In(k), Arg::In(v), Arg::In(&dy), Arg::In(tiles), Arg::In(lse), Arg::In(&sums)];
        let dq = unwritten(q.shape(), q.dtype(), q.device())?;
        queries.run(&[inputs(&of_queries).as_slice(), &[Arg::Out(&dq)], &numbers(n, shape)].concat())?;
        let of_key = || if covered { unwritten(k.shape(), k.dtype(), k.device()) } else { Ok(k.zeros_like()?) };
        let (dk, dv) = (of_key()?, of_key()?);
        let outputs = [Arg::Out(&dk), Arg::Out(&dv)];
        keys.run(&[inputs(&of_keys).as_slice(), &outputs, &numbers(n, shape)].concat())?;
        Ok((dq, dk, dv))
    }
}

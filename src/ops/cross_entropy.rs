//! Cross-entropy fused with the output head: loss = Σ_m −log softmax(h_m Wᵀ)[target_m], h: [M, d], W: [V, d].
//!
//! Only label positions come in, and logits exist for a chunk of them at a time ([`chunk_rows`]), so a vocabulary of
//! 152k never costs gigabytes. The loss is a sum, so its gradient is known as soon as a chunk's logits are: one pass
//! gives both. With p the softmax: dlogits = scale · (p − onehot), dh = dlogits W, dW = dlogitsᵀ h. Logits may be
//! soft-capped before the softmax (Gemma 2), whose slope then joins dlogits.
//!
//! Softmax, loss and dlogits are f32 whatever h and W are. The products are summed in f32 too; in half precision the
//! kernels keep logits so, and the CPU's dlogits too, which the GPU's rounds for the product that follows. The body for any
//! device, whose products have the type of their operands, rounds logits before the softmax and dlogits after it, as
//! PyTorch does.

#![allow(unsafe_code, reason = "matrix products into parts of a buffer")]

mod on_gpu;

use super::fast_math::{exp, vectorised};
use super::gemm::{Stored, product_in_parts, product_with};
use super::gpu;
use super::matrix::Matrix;
use super::scalar::{Scalar, wide};
use super::traffic::counted;
use super::weight::Operand;
use super::{fused, linear, output, softcap, with_f32};
use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

/// Logits held at a time (64 MiB in f32); on a GPU, where every chunk reads the whole head again, twice, 256 MiB.
const CHUNK_ELEMENTS: usize = 1 << 24;
const GPU_CHUNK_ELEMENTS: usize = 1 << 26;
/// Sums side by side.
const LANES: usize = 16;
/// Exponentials are summed in f32 within a block, in f64 across blocks.
const SUM_BLOCK: usize = 1024;

/// Gradients of `scale · loss`.
pub struct Gradients {
    /// [M, d]
    pub hidden: Tensor,
    /// [V, d], if requested
    pub head: Option<Tensor>,
}

/// The cross-entropy of each row, perhaps still on the device.
pub enum Losses {
    Known(Vec<f64>),
    /// [M], f32
    Pending(Tensor),
}

impl Losses {
    fn of(tensor: Tensor) -> Result<Self> {
        if Scalar::waits(tensor.device()) { Ok(Self::Pending(tensor)) } else { Ok(Self::Known(host(&tensor)?)) }
    }

    /// Their sum, in f64 if the device has it.
    pub fn sum(&self) -> Result<Scalar> {
        match self {
            Self::Known(losses) => Ok(Scalar::Known(losses.iter().sum())),
            Self::Pending(losses) => Scalar::of(losses.to_dtype(wide(losses.device()))?.sum_all()?),
        }
    }

    /// All losses; waits for the device.
    pub fn read(self) -> Result<Vec<f64>> {
        match self {
            Self::Known(losses) => Ok(losses),
            Self::Pending(losses) => host(&losses),
        }
    }
}

/// The values of an f32 vector on any device.
fn host(x: &Tensor) -> Result<Vec<f64>> {
    Ok(x.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
}

/// Rows of logits that exist at a time, out of `rows`.
pub fn chunk_rows(vocab: usize, rows: usize, on_cpu: bool) -> usize {
    let elements = if on_cpu { CHUNK_ELEMENTS } else { GPU_CHUNK_ELEMENTS };
    (elements / vocab).clamp(1, rows.max(1))
}

/// Sum of the losses only; h: [M, d], W: [V, d], targets: M ids.
pub fn forward<'a>(hidden: &Tensor, head: impl Into<Operand<'a>>, targets: &[u32], cap: Option<f64>) -> Result<f64> {
    Ok(losses(hidden, head, targets, cap)?.iter().sum())
}

/// The M losses only.
pub fn losses<'a>(
    hidden: &Tensor,
    head: impl Into<Operand<'a>>,
    targets: &[u32],
    cap: Option<f64>,
) -> Result<Vec<f64>> {
    let head = head.into();
    check(hidden, head, targets)?;
    if fused(&[hidden]) && head.fused() {
        return Ok(kernel(hidden, head, targets, None, cap)?.0);
    }
    let head = head.dense(hidden.dtype())?;
    let rows = chunk_rows(head.dim(0)?, targets.len(), hidden.device().is_cpu());
    let chunks = targets.chunks(rows).enumerate().map(|(i, targets)| {
        let h = hidden.narrow(0, i * rows, targets.len())?;
        Ok(generic_chunk(&h, &head, &ids(targets, hidden)?, None, cap)?.0)
    });
    host(&Tensor::cat(&chunks.collect::<Result<Vec<_>>>()?, 0)?)
}

/// Sum of the losses, and the gradients of `scale` times that sum; that of the head only if `want_head`.
pub fn forward_backward<'a>(
    hidden: &Tensor,
    head: impl Into<Operand<'a>>,
    targets: &[u32],
    scale: f64,
    want_head: bool,
    cap: Option<f64>,
) -> Result<(f64, Gradients)> {
    let (losses, gradients) = losses_backward(hidden, head, targets, scale, want_head, cap)?;
    Ok((losses.sum()?.read()?, gradients))
}

/// As [`forward_backward`], with the losses one by one. Does not wait for the device.
pub fn losses_backward<'a>(
    hidden: &Tensor,
    head: impl Into<Operand<'a>>,
    targets: &[u32],
    scale: f64,
    want_head: bool,
    cap: Option<f64>,
) -> Result<(Losses, Gradients)> {
    let head = head.into();
    check(hidden, head, targets)?;
    if !fused(&[hidden]) || !head.fused() {
        return generic(hidden, &head.dense(hidden.dtype())?, targets, scale, want_head, cap);
    }
    let (losses, gradients) = kernel(hidden, head, targets, Some((scale as f32, want_head)), cap)?;
    Ok((Losses::Known(losses), gradients.context("no gradients were computed")?))
}

/// Checks the shapes and targets: the kernel reads rows of both matrices, and writes as many as there are targets.
fn check(hidden: &Tensor, head: Operand, targets: &[u32]) -> Result<()> {
    let ((rows, width), (vocab, head_width)) = (hidden.dims2()?, head.dims()?);
    let fit = rows == targets.len() && width == head_width && vocab > 0;
    ensure!(
        fit,
        "hidden {:?}, head {:?} and {} targets do not fit together",
        hidden.dims(),
        (vocab, head_width),
        targets.len()
    );
    Ok(())
}

/// The losses [m] of a chunk h [m, d] with a head of its type and, with `scale`, the gradients of `scale` times their sum by the logits, [m, V] in the
/// type of h. `ids`: the targets, [m, 1].
fn generic_chunk(
    h: &Tensor,
    head: &Tensor,
    ids: &Tensor,
    scale: Option<f64>,
    cap: Option<f64>,
) -> Result<(Tensor, Option<Tensor>)> {
    if gpu::CROSS_ENTROPY.serve(&[h, head]) {
        return on_gpu::losses(&linear::forward_f32(h, head)?, ids, scale, cap, h.dtype());
    }
    let logits = counted(h.matmul(&head.t()?)?, &[h, head]);
    let logits = logits.to_dtype(DType::F32)?;
    let logits = cap.map_or(Ok(logits.clone()), |cap| softcap::forward(&logits, cap))?;
    let softmax = Softmax::new(&logits, ids)?;
    let Some(scale) = scale else { return Ok((softmax.losses, None)) };
    let gradients = softmax.gradient(ids, scale)?;
    let gradients = match cap {
        Some(cap) => softcap::backward(&logits, &gradients, cap)?,
        None => gradients,
    };
    Ok((softmax.losses, Some(gradients.to_dtype(h.dtype())?)))
}

/// [m, 1] on the device of `like`
fn ids(targets: &[u32], like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::new(targets, like.device())?.unsqueeze(1)?)
}

/// The softmax of rows of logits [m, V], in few passes: e = exp(x − max), p = e / Σ e.
struct Softmax {
    /// [m]
    losses: Tensor,
    /// e, [m, V]
    exponentials: Tensor,
    /// Σ e, [m, 1]
    sums: Tensor,
}

impl Softmax {
    /// `ids`: the targets, [m, 1].
    fn new(logits: &Tensor, ids: &Tensor) -> Result<Self> {
        let below = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
        let exponentials = below.exp()?;
        let sums = exponentials.sum_keepdim(D::Minus1)?;
        let losses = (sums.log()? - below.gather(ids, 1)?)?.flatten_all()?;
        Ok(Self { losses, exponentials, sums })
    }

    /// scale · (p − onehot), [m, V]
    fn gradient(&self, ids: &Tensor, scale: f64) -> Result<Tensor> {
        let shares = (self.sums.recip()? * scale)?;
        let minus = Tensor::full(-scale as f32, ids.shape(), ids.device())?;
        Ok(self.exponentials.broadcast_mul(&shares)?.scatter_add(ids, &minus, 1)?)
    }
}

fn generic(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    scale: f64,
    want_head: bool,
    cap: Option<f64>,
) -> Result<(Losses, Gradients)> {
    let rows = chunk_rows(head.dim(0)?, targets.len(), hidden.device().is_cpu());
    let (mut losses, mut d_hidden, mut d_head) = (vec![], vec![], None);
    for (i, targets) in targets.chunks(rows).enumerate() {
        let (h, ids) = (hidden.narrow(0, i * rows, targets.len())?, ids(targets, hidden)?);
        let (of_chunk, d_logits) = generic_chunk(&h, head, &ids, Some(scale), cap)?;
        let d_logits = d_logits.context("no gradients were computed")?;
        losses.push(of_chunk);
        d_hidden.push(counted(d_logits.matmul(head)?, &[&d_logits, head]));
        if want_head {
            let part = d_logits.t()?.matmul(&h)?.to_dtype(DType::F32)?;
            d_head = Some(match d_head {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
    }
    Ok((Losses::of(Tensor::cat(&losses, 0)?)?, Gradients { hidden: Tensor::cat(&d_hidden, 0)?, head: d_head }))
}

/// The losses and, with `backward` = (scale, whether the head's gradient is wanted), the gradients.
fn kernel(
    hidden: &Tensor,
    head: Operand,
    targets: &[u32],
    backward: Option<(f32, bool)>,
    cap: Option<f64>,
) -> Result<(Vec<f64>, Option<Gradients>)> {
    let ((m, d), (vocab, _)) = (hidden.dims2()?, head.dims()?);
    let rows = chunk_rows(vocab, m, true);
    let cap = cap.map(|cap| cap as f32);
    let want_head = backward.is_some_and(|(_, want_head)| want_head);
    let mut losses = Vec::with_capacity(m);
    let mut logits = vec![0f32; rows * vocab];
    let mut d_hidden = vec![0f32; if backward.is_some() { m * d } else { 0 }];
    let mut d_head = vec![0f32; if want_head { vocab * d } else { 0 }];
    let held = head.hold();
    let values = held.values()?;
    let weight = |transposed| Stored { values, rows: vocab, cols: d, transposed };
    let (w, w_transposed) = (weight(false), weight(true));
    with_f32([hidden], |[h]| {
        for (i, targets) in targets.chunks(rows).enumerate() {
            let (count, h) = (targets.len(), Matrix::read(h, i * rows * d, d));
            // SAFETY: `count` rows of h from i · rows on, all of W, and a buffer of our own.
            unsafe { product_with(count, h, w_transposed, Matrix::write(&mut logits, vocab), false) };
            let scale = backward.map(|(scale, _)| scale);
            losses.extend(row_losses(&mut logits, vocab, targets, scale, cap));
            if backward.is_none() {
                continue;
            }
            let (d_logits, part) = (Matrix::read(&logits, 0, vocab), Matrix::write(&mut d_hidden[i * rows * d..], d));
            // SAFETY: as above; the slice starts at this chunk's first row.
            unsafe { product_with(count, d_logits, w, part, false) };
            if want_head {
                // SAFETY: as above; d_head has W's size.
                unsafe { product_in_parts((vocab, d, count), d_logits.t(), h, Matrix::write(&mut d_head, d), true) };
            }
        }
    })?;
    let gradients = backward.map(|_| {
        let head = want_head.then(|| Tensor::from_vec(d_head, (vocab, d), hidden.device())).transpose()?;
        Ok::<_, anyhow::Error>(Gradients { hidden: output(d_hidden, (m, d), hidden)?, head })
    });
    Ok((losses, gradients.transpose()?))
}

/// The losses of a chunk's rows of logits; with `scale` the rows become the gradients of `scale` times their sum.
fn row_losses(logits: &mut [f32], vocab: usize, targets: &[u32], scale: Option<f32>, cap: Option<f32>) -> Vec<f64> {
    logits
        .par_chunks_mut(vocab)
        .zip(targets)
        .map(|(row, &target)| {
            if let Some(cap) = cap {
                vectorised!(row.iter_mut().for_each(|x| *x = softcap::cap(*x, cap)));
            }
            match scale {
                Some(scale) => row_gradient(row, target, scale, cap),
                None => row_loss(row, target),
            }
        })
        .collect()
}

/// −log softmax(row)[target]
fn row_loss(row: &[f32], target: u32) -> f64 {
    let (max, sum) = vectorised!({
        let (max, mut sum) = (largest(row), 0f64);
        for values in row.chunks(SUM_BLOCK) {
            let mut sums = [0f32; LANES];
            for chunk in values.chunks(LANES) {
                for (sum, &x) in sums.iter_mut().zip(chunk) {
                    *sum += exp(x - max);
                }
            }
            sum += wide_sum(&sums);
        }
        (max, sum)
    });
    sum.ln() + f64::from(max) - f64::from(row[target as usize])
}

/// As [`row_loss`]; replaces the row of (capped) logits by scale · (softmax − onehot), times the cap's slope.
fn row_gradient(row: &mut [f32], target: u32, scale: f32, cap: Option<f32>) -> f64 {
    let target_logit = row[target as usize];
    let Some(cap) = cap else {
        let (max, sum) = vectorised!(replace_by_exponentials(row));
        let factor = (f64::from(scale) / sum) as f32;
        vectorised!(row.iter_mut().for_each(|x| *x *= factor));
        row[target as usize] -= scale;
        return sum.ln() + f64::from(max) - f64::from(target_logit);
    };
    let loss = row_loss(row, target);
    let log_sum = (loss + f64::from(target_logit)) as f32;
    vectorised!(row.iter_mut().for_each(|x| *x = exp(*x - log_sum) * scale * softcap::slope(*x, cap)));
    row[target as usize] -= scale * softcap::slope(target_logit, cap);
    loss
}

/// Replaces every x by e^(x − max); returns the maximum, and the sum as [`row_loss`] computes it.
#[inline(always)]
fn replace_by_exponentials(row: &mut [f32]) -> (f32, f64) {
    let (max, mut sum) = (largest(row), 0f64);
    for values in row.chunks_mut(SUM_BLOCK) {
        let mut sums = [0f32; LANES];
        for chunk in values.chunks_mut(LANES) {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *x = exp(*x - max);
                *sum += *x;
            }
        }
        sum += wide_sum(&sums);
    }
    (max, sum)
}

#[inline(always)]
fn wide_sum(sums: &[f32; LANES]) -> f64 {
    sums.iter().map(|&sum| f64::from(sum)).sum()
}

#[inline(always)]
fn largest(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in row.chunks(LANES) {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests;

//! Cross-entropy fused with the output head: loss = Σ_m −log softmax(h_m Wᵀ)[target_m], h: [M, d], W: [V, d].
//!
//! Only label positions come in, and logits exist for [`CHUNK_ELEMENTS`] / V of them at a time, so a vocabulary of
//! 152k never costs gigabytes. The loss is a sum, so its gradient is known as soon as a chunk's logits are: one pass
//! gives both. With p the softmax: dlogits = scale · (p − onehot), dh = dlogits W, dW = dlogitsᵀ h.

use super::fast_math::{exp, vectorised};
use super::gemm::{Matrix, product};
use super::{fused, with_f32};
use anyhow::Result;
use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

/// Logits held at a time (64 MiB in f32).
const CHUNK_ELEMENTS: usize = 1 << 24;

/// Gradients of `scale · loss`.
pub struct Gradients {
    /// [M, d]
    pub hidden: Tensor,
    /// [V, d], where it was asked for
    pub head: Option<Tensor>,
}

fn chunk_rows(vocab: usize, rows: usize) -> usize {
    (CHUNK_ELEMENTS / vocab).clamp(1, rows.max(1))
}

/// Sum of the losses alone; h: [M, d], W: [V, d], targets: M ids.
pub fn forward(hidden: &Tensor, head: &Tensor, targets: &[u32]) -> Result<f64> {
    let rows = chunk_rows(head.dim(0)?, targets.len());
    let mut loss = 0.0;
    for (i, targets) in targets.chunks(rows).enumerate() {
        let logits = hidden.narrow(0, i * rows, targets.len())?.matmul(&head.t()?)?;
        loss += if fused(&[&logits]) {
            let vocab = head.dim(0)?;
            with_f32([&logits], |[logits]| {
                logits.par_chunks(vocab).zip(targets).map(|(row, &t)| row_loss(row, t)).collect::<Vec<_>>()
            })?
            .iter()
            .sum::<f64>()
        } else {
            generic_loss(&logits, targets)?.0
        };
    }
    Ok(loss)
}

/// Sum of the losses, and the gradients of `scale` times that sum.
pub fn forward_backward(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    scale: f64,
    want_head: bool,
) -> Result<(f64, Gradients)> {
    if fused(&[hidden, head]) {
        kernel(hidden, head, targets, scale as f32, want_head)
    } else {
        generic(hidden, head, targets, scale, want_head)
    }
}

/// (sum of losses, log-probabilities [m, V] in f32)
fn generic_loss(logits: &Tensor, targets: &[u32]) -> Result<(f64, Tensor)> {
    let log_p = candle_nn::ops::log_softmax(&logits.to_dtype(DType::F32)?, D::Minus1)?;
    let targets = Tensor::new(targets, logits.device())?.unsqueeze(1)?;
    let picked = log_p.gather(&targets, 1)?.to_dtype(DType::F64)?;
    Ok((-picked.sum_all()?.to_scalar::<f64>()?, log_p))
}

fn generic(hidden: &Tensor, head: &Tensor, targets: &[u32], scale: f64, want_head: bool) -> Result<(f64, Gradients)> {
    let rows = chunk_rows(head.dim(0)?, targets.len());
    let (mut loss, mut d_hidden, mut d_head) = (0.0, vec![], None);
    for (i, targets) in targets.chunks(rows).enumerate() {
        let h = hidden.narrow(0, i * rows, targets.len())?;
        let (part, log_p) = generic_loss(&h.matmul(&head.t()?)?, targets)?;
        loss += part;
        let minus_one = Tensor::full(-1f32, (targets.len(), 1), hidden.device())?;
        let ids = Tensor::new(targets, hidden.device())?.unsqueeze(1)?;
        let d_logits = (log_p.exp()?.scatter_add(&ids, &minus_one, 1)? * scale)?.to_dtype(hidden.dtype())?;
        d_hidden.push(d_logits.matmul(head)?);
        if want_head {
            let part = d_logits.t()?.matmul(&h)?.to_dtype(DType::F32)?;
            d_head = Some(match d_head {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
    }
    Ok((loss, Gradients { hidden: Tensor::cat(&d_hidden, 0)?, head: d_head }))
}

fn kernel(hidden: &Tensor, head: &Tensor, targets: &[u32], scale: f32, want_head: bool) -> Result<(f64, Gradients)> {
    let ((m, d), vocab) = (hidden.dims2()?, head.dim(0)?);
    let rows = chunk_rows(vocab, m);
    let mut loss = 0.0;
    let mut logits = vec![0f32; rows * vocab];
    let mut d_hidden = vec![0f32; m * d];
    let mut d_head = if want_head { vec![0f32; vocab * d] } else { vec![] };
    let all = gemm::Parallelism::Rayon(rayon::current_num_threads());
    with_f32([hidden, head], |[h, w]| {
        let w = Matrix::read(w, 0, d);
        for (i, targets) in targets.chunks(rows).enumerate() {
            let (count, h) = (targets.len(), Matrix::read(h, i * rows * d, d));
            let out = Matrix::write(&mut logits, vocab);
            // SAFETY: `count` rows of h from i · rows on, all of W, and buffers of our own.
            unsafe { product((count, vocab, d), h, w.t(), out, 1.0, false, all) };
            let parts: Vec<f64> = logits
                .par_chunks_mut(vocab)
                .zip(targets)
                .map(|(row, &target)| {
                    let part = row_loss(row, target);
                    row_gradient(row, target, part, scale);
                    part
                })
                .collect();
            loss += parts.iter().sum::<f64>();
            let part = Matrix::write(&mut d_hidden[i * rows * d..], d);
            // SAFETY: as above; the slice starts at this chunk's first row.
            unsafe { product((count, d, vocab), out, w, part, 1.0, false, all) };
            if want_head {
                // SAFETY: as above; d_head has W's size.
                unsafe { product((vocab, d, count), out.t(), h, Matrix::write(&mut d_head, d), 1.0, true, all) };
            }
        }
    })?;
    let tensor = |values, shape: (usize, usize)| Tensor::from_vec(values, shape, hidden.device());
    let head = if want_head { Some(tensor(d_head, (vocab, d))?) } else { None };
    Ok((loss, Gradients { hidden: tensor(d_hidden, (m, d))?, head }))
}

/// −log softmax(row)[target]
fn row_loss(row: &[f32], target: u32) -> f64 {
    let (max, sum) = vectorised(|| {
        let mut lanes = [f32::NEG_INFINITY; 16];
        for chunk in row.chunks(16) {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane = if x > *lane { x } else { *lane };
            }
        }
        let max = lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // f32 within a block of 1024, f64 across blocks.
        let block = |values: &[f32]| {
            let mut sums = [0f32; 16];
            for chunk in values.chunks(16) {
                for (sum, &x) in sums.iter_mut().zip(chunk) {
                    *sum += exp(x - max);
                }
            }
            sums.iter().map(|&sum| f64::from(sum)).sum::<f64>()
        };
        (max, row.chunks(1024).map(block).sum::<f64>())
    });
    sum.ln() + f64::from(max) - f64::from(row[target as usize])
}

/// Replaces a row of logits by scale · (softmax − onehot); `loss` is the row's −log softmax[target].
fn row_gradient(row: &mut [f32], target: u32, loss: f64, scale: f32) {
    let log_sum = (loss + f64::from(row[target as usize])) as f32;
    vectorised(|| row.iter_mut().for_each(|x| *x = exp(*x - log_sum) * scale));
    row[target as usize] -= scale;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Case, close, random};
    use candle_core::{Device, Var};

    const TARGETS: [u32; 5] = [3, 0, 10, 3, 7];

    fn inputs() -> (Tensor, Tensor) {
        ((random(&[5, 6], 1) * 3.0).unwrap(), random(&[11, 6], 2))
    }

    #[test]
    fn matches_autograd_and_finite_differences() {
        let (h, w) = inputs();
        let (loss, grads) = forward_backward(&h, &w, &TARGETS, 0.3, true).unwrap();
        assert!((forward(&h, &w, &TARGETS).unwrap() - loss).abs() < 1e-9);
        let (vh, vw) = (Var::from_tensor(&h).unwrap(), Var::from_tensor(&w).unwrap());
        let logits = vh.matmul(&vw.t().unwrap()).unwrap();
        let targets = Tensor::new(&TARGETS, &Device::Cpu).unwrap();
        let oracle = (candle_nn::loss::cross_entropy(&logits, &targets).unwrap() * 5.0).unwrap();
        let value = f64::from(oracle.to_scalar::<f32>().unwrap());
        assert!((loss - value).abs() < 1e-5 * value, "{loss} {value}");
        let tape = (oracle * 0.3).unwrap().backward().unwrap();
        close(&grads.hidden, tape.get(&vh).unwrap(), 1e-5);
        close(grads.head.as_ref().unwrap(), tape.get(&vw).unwrap(), 1e-5);
        let dy = Tensor::new(0.3f64, &Device::Cpu).unwrap();
        let case = Case::new(vec![h, w], dy, move |v| {
            let log_p = candle_nn::ops::log_softmax(&v[0].matmul(&v[1].t()?)?, 1)?;
            log_p.gather(&targets.unsqueeze(1)?, 1)?.sum_all()?.neg()
        });
        case.check(&[&grads.hidden, grads.head.as_ref().unwrap()], 1e-5);
    }

    #[test]
    fn kernel_equals_generic_over_several_chunks() {
        // A vocabulary so large that five rows take more than one chunk.
        let vocab = CHUNK_ELEMENTS / 2 - 3;
        let (h, w) = (random(&[5, 2], 3), random(&[vocab, 2], 4));
        let (slow, slow_grads) = generic(&h, &w, &TARGETS, 2.0, true).unwrap();
        let (fast, fast_grads) = kernel(&h, &w, &TARGETS, 2.0, true).unwrap();
        assert!((slow - fast).abs() < 1e-5 * slow);
        close(&fast_grads.hidden, &slow_grads.hidden, 1e-4);
        close(&fast_grads.head.unwrap(), &slow_grads.head.unwrap(), 1e-5);
    }
}

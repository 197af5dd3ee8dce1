//! Cross-entropy fused with the output head: loss = Σ_m −log softmax(h_m Wᵀ)[target_m], h: [M, d], W: [V, d].
//!
//! Only label positions come in, and logits exist for [`CHUNK_ELEMENTS`] / V of them at a time, so a vocabulary of
//! 152k never costs gigabytes. The loss is a sum, so its gradient is known as soon as a chunk's logits are: one pass
//! gives both. With p the softmax: dlogits = scale · (p − onehot), dh = dlogits W, dW = dlogitsᵀ h. Logits may be
//! soft-capped before the softmax (Gemma 2), whose slope then joins dlogits. Logits are f32 whatever h and W are.

#![allow(unsafe_code, reason = "matrix products into parts of a buffer")]

use super::fast_math::{exp, vectorised};
use super::gemm::{Matrix, Weight, product, product_with};
use super::{fused, output, softcap, values, with_f32};
use anyhow::{Context, Result, ensure};
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

/// Rows of logits that exist at a time, of `rows` in all.
pub fn chunk_rows(vocab: usize, rows: usize) -> usize {
    (CHUNK_ELEMENTS / vocab).clamp(1, rows.max(1))
}

/// Sum of the losses alone; h: [M, d], W: [V, d], targets: M ids.
pub fn forward(hidden: &Tensor, head: &Tensor, targets: &[u32], cap: Option<f64>) -> Result<f64> {
    Ok(losses(hidden, head, targets, cap)?.iter().sum())
}

/// The M losses alone.
pub fn losses(hidden: &Tensor, head: &Tensor, targets: &[u32], cap: Option<f64>) -> Result<Vec<f64>> {
    check(hidden, head, targets)?;
    if fused(&[hidden, head]) {
        return Ok(kernel(hidden, head, targets, None, cap)?.0);
    }
    let rows = chunk_rows(head.dim(0)?, targets.len());
    let mut losses = Vec::with_capacity(targets.len());
    for (i, targets) in targets.chunks(rows).enumerate() {
        let logits = generic_logits(&hidden.narrow(0, i * rows, targets.len())?, head, cap)?;
        losses.extend(generic_losses(&logits, targets)?.0);
    }
    Ok(losses)
}

/// Sum of the losses, and the gradients of `scale` times that sum; that of the head only if `want_head`.
pub fn forward_backward(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    scale: f64,
    want_head: bool,
    cap: Option<f64>,
) -> Result<(f64, Gradients)> {
    let (losses, gradients) = losses_backward(hidden, head, targets, scale, want_head, cap)?;
    Ok((losses.iter().sum(), gradients))
}

/// As [`forward_backward`], with the losses one by one.
pub fn losses_backward(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    scale: f64,
    want_head: bool,
    cap: Option<f64>,
) -> Result<(Vec<f64>, Gradients)> {
    check(hidden, head, targets)?;
    if !fused(&[hidden, head]) {
        return generic(hidden, head, targets, scale, want_head, cap);
    }
    let (losses, gradients) = kernel(hidden, head, targets, Some((scale as f32, want_head)), cap)?;
    Ok((losses, gradients.context("no gradients were computed")?))
}

/// The kernel reads rows of both, and writes as many as there are targets.
fn check(hidden: &Tensor, head: &Tensor, targets: &[u32]) -> Result<()> {
    let ((rows, width), (vocab, head_width)) = (hidden.dims2()?, head.dims2()?);
    let fit = rows == targets.len() && width == head_width && vocab > 0;
    ensure!(
        fit,
        "hidden {:?}, head {:?} and {} targets do not fit together",
        hidden.dims(),
        head.dims(),
        targets.len()
    );
    Ok(())
}

/// [m, V] in f32, capped.
fn generic_logits(hidden: &Tensor, head: &Tensor, cap: Option<f64>) -> Result<Tensor> {
    let logits = hidden.matmul(&head.to_dtype(hidden.dtype())?.t()?)?.to_dtype(DType::F32)?;
    cap.map_or(Ok(logits.clone()), |cap| softcap::forward(&logits, cap))
}

/// (losses, log-probabilities [m, V] in f32)
fn generic_losses(logits: &Tensor, targets: &[u32]) -> Result<(Vec<f64>, Tensor)> {
    let log_p = candle_nn::ops::log_softmax(logits, D::Minus1)?;
    let targets = Tensor::new(targets, logits.device())?.unsqueeze(1)?;
    let picked = log_p.gather(&targets, 1)?.to_dtype(DType::F64)?;
    Ok((picked.neg()?.flatten_all()?.to_vec1()?, log_p))
}

fn generic(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    scale: f64,
    want_head: bool,
    cap: Option<f64>,
) -> Result<(Vec<f64>, Gradients)> {
    let rows = chunk_rows(head.dim(0)?, targets.len());
    let (mut losses, mut d_hidden, mut d_head) = (vec![], vec![], None);
    for (i, targets) in targets.chunks(rows).enumerate() {
        let h = hidden.narrow(0, i * rows, targets.len())?;
        let logits = generic_logits(&h, head, cap)?;
        let (part, log_p) = generic_losses(&logits, targets)?;
        losses.extend(part);
        let minus_one = Tensor::full(-1f32, (targets.len(), 1), hidden.device())?;
        let ids = Tensor::new(targets, hidden.device())?.unsqueeze(1)?;
        let d_logits = (log_p.exp()?.scatter_add(&ids, &minus_one, 1)? * scale)?;
        let d_logits = match cap {
            Some(cap) => softcap::backward(&logits, &d_logits, cap)?,
            None => d_logits,
        };
        let d_logits = d_logits.to_dtype(hidden.dtype())?;
        d_hidden.push(d_logits.matmul(&head.to_dtype(hidden.dtype())?)?);
        if want_head {
            let part = d_logits.t()?.matmul(&h)?.to_dtype(DType::F32)?;
            d_head = Some(match d_head {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
    }
    Ok((losses, Gradients { hidden: Tensor::cat(&d_hidden, 0)?, head: d_head }))
}

/// The losses, and with `backward` = (scale, whether the head's is wanted) the gradients.
fn kernel(
    hidden: &Tensor,
    head: &Tensor,
    targets: &[u32],
    backward: Option<(f32, bool)>,
    cap: Option<f64>,
) -> Result<(Vec<f64>, Option<Gradients>)> {
    let ((m, d), vocab) = (hidden.dims2()?, head.dim(0)?);
    let rows = chunk_rows(vocab, m);
    let cap = cap.map(|cap| cap as f32);
    let want_head = backward.is_some_and(|(_, want_head)| want_head);
    let mut losses = Vec::with_capacity(m);
    let mut logits = vec![0f32; rows * vocab];
    let mut d_hidden = vec![0f32; if backward.is_some() { m * d } else { 0 }];
    let mut d_head = vec![0f32; if want_head { vocab * d } else { 0 }];
    let guard = head.storage_and_layout();
    let weight =
        |transposed| Ok::<_, anyhow::Error>(Weight { values: values(&guard)?, rows: vocab, cols: d, transposed });
    let (w, w_transposed) = (weight(false)?, weight(true)?);
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
                let all = gemm::Parallelism::Rayon(rayon::current_num_threads());
                // SAFETY: as above; d_head has W's size.
                unsafe { product((vocab, d, count), d_logits.t(), h, Matrix::write(&mut d_head, d), 1.0, true, all) };
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
                vectorised(|| row.iter_mut().for_each(|x| *x = softcap::cap(*x, cap)));
            }
            let part = row_loss(row, target);
            if let Some(scale) = scale {
                row_gradient(row, target, part, scale, cap);
            }
            part
        })
        .collect()
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

/// Replaces a row of (capped) logits by scale · (softmax − onehot), times the cap's slope; `loss` is the row's
/// −log softmax[target].
fn row_gradient(row: &mut [f32], target: u32, loss: f64, scale: f32, cap: Option<f32>) {
    let target_logit = row[target as usize];
    let log_sum = (loss + f64::from(target_logit)) as f32;
    match cap {
        None => {
            vectorised(|| row.iter_mut().for_each(|x| *x = exp(*x - log_sum) * scale));
            row[target as usize] -= scale;
        }
        Some(cap) => {
            vectorised(|| row.iter_mut().for_each(|x| *x = exp(*x - log_sum) * scale * softcap::slope(*x, cap)));
            row[target as usize] -= scale * softcap::slope(target_logit, cap);
        }
    }
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
        for cap in [None, Some(2.5)] {
            let (h, w) = inputs();
            let (loss, grads) = forward_backward(&h, &w, &TARGETS, 0.3, true, cap).unwrap();
            assert!((forward(&h, &w, &TARGETS, cap).unwrap() - loss).abs() < 1e-9);
            let (vh, vw) = (Var::from_tensor(&h).unwrap(), Var::from_tensor(&w).unwrap());
            let capped = move |logits: Tensor| match cap {
                Some(cap) => (logits / cap)?.tanh()? * cap,
                None => Ok(logits),
            };
            let logits = capped(vh.matmul(&vw.t().unwrap()).unwrap()).unwrap();
            let targets = Tensor::new(&TARGETS, &Device::Cpu).unwrap();
            let oracle = (candle_nn::loss::cross_entropy(&logits, &targets).unwrap() * 5.0).unwrap();
            let value = f64::from(oracle.to_scalar::<f32>().unwrap());
            assert!((loss - value).abs() < 1e-5 * value, "{loss} {value}");
            let tape = (oracle * 0.3).unwrap().backward().unwrap();
            close(&grads.hidden, tape.get(&vh).unwrap(), 1e-5);
            close(grads.head.as_ref().unwrap(), tape.get(&vw).unwrap(), 1e-5);
            let dy = Tensor::new(0.3f64, &Device::Cpu).unwrap();
            let case = Case::new(vec![h, w], dy, move |v| {
                let log_p = candle_nn::ops::log_softmax(&capped(v[0].matmul(&v[1].t()?)?)?, 1)?;
                log_p.gather(&targets.unsqueeze(1)?, 1)?.sum_all()?.neg()
            });
            case.check(&[&grads.hidden, grads.head.as_ref().unwrap()], 1e-5);
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let (h, w) = inputs();
        let many = [0; 900];
        for (w, targets) in
            [(&w, &TARGETS[..4]), (&w, &many), (&w.narrow(1, 0, 5).unwrap().contiguous().unwrap(), &TARGETS)]
        {
            assert!(losses(&h, w, targets, None).is_err());
            assert!(losses_backward(&h, w, targets, 1.0, true, None).is_err());
        }
    }

    #[test]
    fn kernel_equals_generic_over_several_chunks() {
        // A vocabulary so large that five rows take more than one chunk.
        let vocab = CHUNK_ELEMENTS / 2 - 3;
        let (h, w) = (random(&[5, 2], 3), random(&[vocab, 2], 4));
        for cap in [None, Some(1.5)] {
            let (slow, slow_grads) = generic(&h, &w, &TARGETS, 2.0, true, cap).unwrap();
            let (fast, fast_grads) = kernel(&h, &w, &TARGETS, Some((2.0, true)), cap).unwrap();
            let fast_grads = fast_grads.unwrap();
            assert_eq!((slow.len(), fast.len()), (5, 5));
            assert!(slow.iter().zip(&fast).all(|(slow, fast)| (slow - fast).abs() < 1e-5 * slow));
            close(&fast_grads.hidden, &slow_grads.hidden, 1e-4);
            close(&fast_grads.head.unwrap(), &slow_grads.head.unwrap(), 1e-5);
        }
    }
}

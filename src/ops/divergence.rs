//! The Kullback-Leibler divergence between two models' next tokens, fused with their common head: KL = Σ_m Σ_v p_mv (log
//! p_mv − log q_mv), p = softmax(r_m Wᵀ), q = softmax(h_m Wᵀ), r, h: [M, d], W: [V, d].
//!
//! p is fixed: dlogits = scale · (q − p), dh = dlogits W. As in cross_entropy.rs logits exist for a chunk of rows at a time,
//! in f32, and may be soft-capped before the softmax; their gradients are rounded to the type of h for the last product. One
//! body for every device.

use super::cross_entropy::chunk_rows;
use super::scalar::{Scalar, wide};
use super::weight::Operand;
use super::{linear, softcap};
use anyhow::{Result, ensure};
use candle_core::{D, Tensor};

/// Tensors of a chunk of logits, in f32, that exist at a time.
pub const COPIES: usize = 6;

/// The sum of the M divergences, and the gradient by h, [M, d], of `scale` times that. reference, hidden: [M, d] of one type,
/// W: [V, d]. Does not wait for the device.
pub fn forward_backward<'a>(
    reference: &Tensor,
    hidden: &Tensor,
    head: impl Into<Operand<'a>>,
    scale: f64,
    cap: Option<f64>,
) -> Result<(Scalar, Tensor)> {
    let head = head.into();
    let at_once = chunk_rows(head.dims()?.0, hidden.dim(0)?, hidden.device().is_cpu());
    if head.fused() {
        return in_chunks([reference, hidden], head, scale, cap, at_once);
    }
    // Once, not in every product of every chunk.
    in_chunks([reference, hidden], (&head.dense(hidden.dtype())?).into(), scale, cap, at_once)
}

/// As [`forward_backward`], with logits of so many rows `at_once`.
fn in_chunks(
    [reference, hidden]: [&Tensor; 2],
    head: Operand,
    scale: f64,
    cap: Option<f64>,
    at_once: usize,
) -> Result<(Scalar, Tensor)> {
    let ((rows, width), (vocab, head_width)) = (hidden.dims2()?, head.dims()?);
    let fit = reference.dims() == hidden.dims() && width == head_width && rows > 0;
    ensure!(fit, "hidden {:?} and {:?} and a head of {vocab} do not fit", reference.dims(), hidden.dims());
    let (mut sums, mut d_hidden) = (vec![], vec![]);
    for start in (0..rows).step_by(at_once) {
        let count = at_once.min(rows - start);
        let logits = |x: &Tensor| -> Result<Tensor> {
            let logits = linear::forward_f32(&x.narrow(0, start, count)?, head)?;
            cap.map_or(Ok(logits.clone()), |cap| softcap::forward(&logits, cap))
        };
        let log_p = log_softmax(&logits(reference)?)?;
        let logits = logits(hidden)?;
        let log_q = log_softmax(&logits)?;
        let p = log_p.exp()?;
        let of_rows = (&p * (log_p - &log_q)?)?.sum(D::Minus1)?;
        sums.push(of_rows.to_dtype(wide(hidden.device()))?);
        let d_logits = ((log_q.exp()? - p)? * scale)?;
        let d_logits = match cap {
            Some(cap) => softcap::backward(&logits, &d_logits, cap)?,
            None => d_logits,
        };
        d_hidden.push(linear::backward_input(&d_logits.to_dtype(hidden.dtype())?, head)?);
    }
    Ok((Scalar::of(Tensor::cat(&sums, 0)?.sum_all()?)?, Tensor::cat(&d_hidden, 0)?))
}

/// log softmax of rows, [m, V]
fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let below = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
    let sums = below.exp()?.sum_keepdim(D::Minus1)?;
    Ok(below.broadcast_sub(&sums.log()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{close, random};
    use candle_core::Var;

    fn states(rows: usize, width: usize) -> [Tensor; 2] {
        [1, 2].map(|seed| (random(&[rows, width], seed) * 2.0).unwrap())
    }

    #[test]
    fn matches_autograd() {
        let ([r, h], w) = (states(5, 6), random(&[11, 6], 3));
        for cap in [None, Some(2.5)] {
            let (value, gradient) = forward_backward(&r, &h, &w, 0.3, cap).unwrap();
            let var = Var::from_tensor(&h).unwrap();
            let log_softmax = |x: &Tensor| {
                let logits = x.matmul(&w.t()?)?;
                let logits = cap.map_or(Ok(logits.clone()), |cap| (logits / cap)?.tanh()? * cap)?;
                candle_nn::ops::log_softmax(&logits, 1)
            };
            let (log_p, log_q) = (log_softmax(&r).unwrap(), log_softmax(&var).unwrap());
            let oracle = (log_p.exp().unwrap() * (log_p - log_q).unwrap()).unwrap().sum_all().unwrap();
            let expected = f64::from(oracle.to_scalar::<f32>().unwrap());
            assert!((value.read().unwrap() / expected - 1.0).abs() < 1e-5, "{value:?} {expected}");
            let tape = (oracle * 0.3).unwrap().backward().unwrap();
            close(&gradient, tape.get(&var).unwrap(), 1e-5);
        }
    }

    #[test]
    fn chunks_add_up_and_equal_states_do_not_diverge() {
        let ([r, h], w) = (states(5, 6), random(&[11, 6], 3));
        let (whole, gradient) = forward_backward(&r, &h, &w, 0.5, None).unwrap();
        let (sum, parts) = in_chunks([&r, &h], (&w).into(), 0.5, None, 2).unwrap();
        assert!((whole.read().unwrap() / sum.read().unwrap() - 1.0).abs() < 1e-6);
        close(&parts, &gradient, 1e-6);
        let (none, gradient) = forward_backward(&h, &h, &w, 1.0, None).unwrap();
        assert_eq!(none.read().unwrap(), 0.0);
        assert_eq!(gradient.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap(), 0.0);
        assert!(forward_backward(&r, &h, &random(&[11, 3], 3), 1.0, None).is_err());
    }
}

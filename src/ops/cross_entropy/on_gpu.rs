//! The GPU's kernel (gpu/cross_entropy.cu): a block for each row of logits.

#![allow(unsafe_code, reason = "a GPU kernel")]

use crate::ops::gpu::{Arg, CROSS_ENTROPY, Launch, unwritten};
use crate::ops::traffic::moved;
use anyhow::Result;
use candle_core::{DType, Tensor};

/// The losses [m] of new logits [m, V] in f32, not capped yet; with `scale` also the gradients of `scale` times their sum by the
/// logits, [m, V] in `dtype`: in f32 they take the logits' place.
pub fn losses(
    logits: &Tensor,
    ids: &Tensor,
    scale: Option<f64>,
    cap: Option<f64>,
    dtype: DType,
) -> Result<(Tensor, Option<Tensor>)> {
    let ((m, vocab), device) = (logits.dims2()?, logits.device());
    let launch = Launch::rows(&CROSS_ENTROPY, "cross_entropy", dtype, (m, vocab));
    // SAFETY: m targets and m losses; the kernel reads no logit beyond the vocabulary. Gradients in the place of the logits, which are
    // nobody else's, are written value by value after these were read.
    unsafe {
        let losses = unwritten(m, DType::F32, device)?;
        let place = || if dtype == DType::F32 { Ok(logits.clone()) } else { unwritten((m, vocab), dtype, device) };
        let gradients = scale.map(|_| place()).transpose()?;
        launch.run(&[
            Arg::In(logits),
            Arg::In(ids),
            Arg::Out(&losses),
            Arg::MaybeOut(gradients.as_ref()),
            Arg::Small(vocab),
            Arg::Float(scale.unwrap_or(0.0)),
            Arg::Float(cap.unwrap_or(0.0)),
        ])?;
        if gradients.is_some() {
            // Once for the losses, and once more for the gradients.
            moved(&[logits], &[]);
        }
        Ok((losses, gradients))
    }
}

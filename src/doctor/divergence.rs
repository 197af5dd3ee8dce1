//! The divergence between two models' next tokens, over their common head.

use super::check::Check;
use super::subject::{Lie, Subject, Tolerance, Worst, exact, oracle};
use crate::ops::gpu;
use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};

pub const CHECKS: &[Check] = &[Check::new(
    "divergence",
    "its value and gradient over the head",
    Tolerance { wide: 128.0, narrow: 8.0 },
    divergences,
)
.by("cross_entropy", || gpu::CROSS_ENTROPY.switch_off())];

fn divergences(subject: &Subject, worst: &mut Worst) -> Result<()> {
    for (m, d, vocab) in subject.sizes(&[(67, 33, 1031)], &[(3, 16, 32_003)]) {
        for (lie, cap) in [(Lie::Whole, None), (Lie::Part, Some(2.0)), (Lie::Turned, None)] {
            let [reference, hidden, head] =
                [(m, 1), (m, 2), (vocab, 3)].map(|(rows, seed)| subject.matrix(rows, d, lie, seed));
            let (reference, hidden, head) = (reference?, hidden?, head?);
            let (value, gradient) = (subject.operations.divergence)(&reference, &hidden, &head, 1.0, cap)?;
            let wide = exact(&head)?;
            let log_softmax = |x: &Tensor| {
                let logits = x.matmul(&wide.t()?)?;
                let logits = if let Some(cap) = cap { ((logits / cap)?.tanh()? * cap)? } else { logits };
                candle_nn::ops::log_softmax(&logits, D::Minus1)
            };
            let log_p = log_softmax(&exact(&reference)?)?;
            let ones = Tensor::ones(m, DType::F64, &Device::Cpu)?;
            let (expected, gradients) =
                oracle(&[&hidden], &ones, |v| (log_p.exp()? * (&log_p - log_softmax(&v[0])?)?)?.sum(D::Minus1))?;
            let at = |what: &str| format!("{what} of {m} x {d} over {vocab}, cap {cap:?}, {lie}");
            let expected = expected.sum_all()?.to_scalar::<f64>()?;
            worst.number(at("value"), subject.dtype, value.read()?, expected);
            worst.note(at("dh"), subject.dtype, &gradient, &gradients[0])?;
        }
    }
    Ok(())
}

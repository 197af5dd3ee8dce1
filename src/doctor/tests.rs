//! That faults are found, and named: faulty operations in the places of those that training calls.

use super::*;
use crate::ops::attention::{self, Layout, Saved};
use crate::ops::{causal_conv, delta_rule, divergence, dropout, gated_mlp, rms_norm, rope};
use candle_core::{D, Tensor};
use std::sync::atomic::{AtomicBool, Ordering};

fn subject(dtype: DType, depth: Depth, operations: Operations) -> Subject {
    Subject { operations, ..Subject::new(&Device::Cpu, dtype, depth) }
}

/// The names of the checks that fail.
fn wrong(dtype: DType, depth: Depth, operations: Operations) -> Vec<&'static str> {
    let findings = examine(&subject(dtype, depth, operations), |_| {});
    findings.iter().filter(|finding| !finding.ok).map(|finding| finding.name).collect()
}

#[test]
fn what_training_calls_is_right_in_every_type() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for finding in examine(&subject(dtype, Depth::Full, Operations::default()), |_| {}) {
            assert!(finding.ok, "{}", finding.fault());
            assert!(!finding.at.is_empty() && finding.failure.is_none(), "{finding:?}");
        }
        before_training(&Device::Cpu, dtype).unwrap();
    }
}

/// Each fault by the check that must name it: as they were found on GPUs, or as a kernel may have them.
fn planted() -> Vec<(&'static str, Operations)> {
    let good = Operations::default();
    // Another handle of the same memory, as candle 0.11.1's copies are on Metal.
    let copy = Operations { copy: |x| Ok(x.clone()), ..good };
    // A kernel whose threads stop at the 1024th value of a row.
    let softmax = Operations {
        softmax: |x| {
            let y = candle_nn::ops::softmax_last_dim(x)?;
            let width = y.dim(D::Minus1)?;
            let seen = y.narrow(D::Minus1, 0, width.min(1024))?;
            Ok(seen.pad_with_zeros(D::Minus1, 0, width.saturating_sub(1024))?)
        },
        ..good
    };
    // A factor that is off by a tenth.
    let norm = Operations {
        rms_norm_backward: |saved, weight, dy| Ok((rms_norm::backward_input(saved, weight, dy)? * 1.1)?),
        ..good
    };
    // Forward again instead of backward.
    let rotation = Operations { rope_backward: rope::forward, ..good };
    let gate = Operations {
        gated_mlp_backward: |gate, up, dy, activation| {
            let (d_gate, d_up) = gated_mlp::backward(gate, up, dy, activation)?;
            Ok((d_up, d_gate))
        },
        ..good
    };
    let mask = Operations { dropout: |x, probability, key| dropout::apply(x, probability, key + 1), ..good };
    // The order of rows of a transposed view ignored.
    let product = Operations {
        matmul: |a, b| {
            let b = if b.is_contiguous() { b.clone() } else { b.t()?.reshape(b.shape())? };
            Ok(a.matmul(&b)?)
        },
        ..good
    };
    let losses = Operations {
        cross_entropy: |hidden, head, targets, scale, want_head, cap| {
            crate::ops::cross_entropy::losses_backward(hidden, head, targets, 1.5 * scale, want_head, cap)
        },
        ..good
    };
    // A tenth too much of the gradient.
    let divergence = Operations {
        divergence: |reference, hidden, head, scale, cap| {
            let (value, gradient) = divergence::forward_backward(reference, hidden, head, scale, cap)?;
            Ok((value, (gradient * 1.1)?))
        },
        ..good
    };
    // The ends of sequences ignored.
    let convolution = Operations {
        causal_conv: |x, weight, layout, before| {
            let rows = layout.spans.iter().map(|span| span.q_len).sum();
            let (y, _) = causal_conv::forward(x, weight, &Layout::new(&[rows]), before)?;
            Ok((y, causal_conv::forward(x, weight, layout, before)?.1))
        },
        ..good
    };
    let recurrence = Operations {
        delta_rule: |[mixed, decay, beta], shape, layout, before| {
            delta_rule::forward([mixed, &(decay * 1.1)?, beta], shape, layout, before)
        },
        ..good
    };
    vec![
        ("divergence", divergence),
        ("causal_conv", convolution),
        ("delta_rule", recurrence),
        ("copy", copy),
        ("softmax", softmax),
        ("rms_norm", norm),
        ("rope", rotation),
        ("gated_mlp", gate),
        ("dropout", mask),
        ("matmul", product),
        ("cross_entropy", losses),
    ]
}

#[test]
fn a_planted_fault_is_found_and_nothing_else_is_blamed() {
    for (name, operations) in planted() {
        for dtype in [DType::F32, DType::BF16] {
            assert_eq!(wrong(dtype, Depth::Short, operations), [name], "{dtype:?}");
        }
    }
}

#[test]
fn attention_that_forgets_is_found() {
    // The last of a long sequence's keys get no gradient.
    fn backward(
        saved: &Saved,
        dy: &Tensor,
        shape: attention::Shape,
        layout: &attention::Layout,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let (dq, dk, dv) = attention::backward(saved, dy, shape, layout)?;
        let (rows, kept) = (dk.dim(0)?, dk.dim(0)?.min(2048));
        Ok((dq, dk, dv.narrow(0, 0, kept)?.pad_with_zeros(0, 0, rows - kept)?))
    }
    let forgets = Operations { attention_backward: backward, ..Operations::default() };
    assert_eq!(wrong(DType::F32, Depth::Short, forgets), ["long attention"]);
    // What a window hides is seen.
    let sees = Operations {
        attention: |q, k, v, shape, layout| {
            attention::forward(q, k, v, attention::Shape { window: None, ..shape }, layout)
        },
        ..Operations::default()
    };
    assert_eq!(wrong(DType::BF16, Depth::Short, sees), ["attention"]);
}

#[test]
fn what_is_not_finite_or_not_computed_is_a_fault() {
    let failing = Operations { softmax: |_| anyhow::bail!("no such kernel\nbacktrace"), ..Operations::default() };
    let not_finite = Operations { softmax: |x| Ok((x.zeros_like()? / 0.0)?), ..Operations::default() };
    for (operations, expected) in [(failing, "softmax (no such kernel)"), (not_finite, "not finite")] {
        let subject = subject(DType::F32, Depth::Short, operations);
        let finding = checks().iter().find(|check| check.name == "softmax").unwrap().on(&subject);
        assert!(!finding.ok && finding.error_epsilons.is_none());
        assert!(finding.fault().contains(expected), "{}", finding.fault());
    }
}

#[test]
fn training_stops_at_a_wrong_operation_and_goes_on_without_a_wrong_kernel() {
    let (_, operations) = planted().swap_remove(5);
    let subject = subject(DType::F32, Depth::Short, operations);
    // Without what switches off this process's own kernels.
    let own: Vec<Check> = checks().into_iter().map(|check| Check { kernel: None, ..check }).collect();
    let error = rely_on(&subject, &own).unwrap_err();
    let text = error.to_string();
    for part in
        ["cpu computes wrongly in f32", "rms_norm (dx of 67 x 131", "`asft doctor --device cpu --dtype f32 --json`"]
    {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(crate::error::exit_code(&error), 1);

    // A kernel that is wrong until it is switched off.
    static OFF: AtomicBool = AtomicBool::new(false);
    let check = Check {
        name: "kernel",
        what: "",
        tolerance: Tolerance::EXACT,
        run: |_, worst| {
            worst.number("a number", DType::F32, if OFF.load(Ordering::SeqCst) { 1.0 } else { 2.0 }, 1.0);
            Ok(())
        },
        kernel: Some(Kernel { name: "fused", switch_off: || OFF.store(true, Ordering::SeqCst) }),
    };
    rely_on(&subject, &[check]).unwrap();
    assert!(OFF.load(Ordering::SeqCst));
    assert!(
        rely_on(
            &subject,
            &[Check {
                kernel: None,
                run: |_, worst| {
                    worst.number("a number", DType::F32, f64::NAN, 1.0);
                    Ok(())
                },
                ..check
            }]
        )
        .is_err()
    );
}

#[test]
fn a_fault_can_be_made_a_warning() {
    let fault = || Err(anyhow::anyhow!("wrong"));
    assert!(judged(fault(), false).is_err() && judged(fault(), true).is_ok() && judged(Ok(()), false).is_ok());
    let set = |value: &str| only_warns(Some(OsStr::new(value)));
    assert!(set("warn").unwrap() && !only_warns(None).unwrap());
    let error = set("off").unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), crate::error::exit_code(&error)),
        ("ASFT_DEVICE_CHECK is \"off\"; it may be \"warn\", or unset", 2)
    );
}

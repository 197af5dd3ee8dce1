//! What a gated DeltaNet has besides linears and norms: the causal convolution and the gated delta rule, over packed sequences.

use super::check::Check;
use super::subject::{Lie, Subject, Tolerance, Worst, oracle};
use crate::ops::attention::Layout;
use crate::ops::delta_rule::{self, Shape};
use crate::ops::{causal_conv, gpu};
use anyhow::{Context, Result};
use candle_core::{D, DType, Tensor};

pub const CHECKS: &[Check] = &[
    Check::new(
        "causal_conv",
        "packed sequences, forward and both gradients",
        Tolerance { wide: 64.0, narrow: 2.0 },
        convolutions,
    )
    .by("causal_conv", || gpu::CAUSAL_CONV.switch_off()),
    Check::new(
        "delta_rule",
        "packed sequences of several chunks, forward and every gradient",
        Tolerance { wide: 256.0, narrow: 4.0 },
        recurrences,
    ),
];

/// By the definition: x [N, C], the weight [C, K].
fn convolved(x: &Tensor, weight: &Tensor, lengths: &[usize]) -> candle_core::Result<Tensor> {
    let (mut start, mut parts) = (0, vec![]);
    for &length in lengths {
        let own = x.narrow(0, start, length)?;
        let (mut p, width) = (own.zeros_like()?, weight.dim(1)?);
        for j in (0..width).filter(|j| j + length >= width) {
            // What is `back` rows before each row of the sequence.
            let back = width - 1 - j;
            let earlier = own.narrow(0, 0, length - back)?.pad_with_zeros(0, back, 0)?;
            p = (p + earlier.broadcast_mul(&weight.narrow(1, j, 1)?.t()?)?)?;
        }
        parts.push((&p / (p.neg()?.exp()? + 1.0)?)?);
        start += length;
    }
    Tensor::cat(&parts, 0)
}

fn convolutions(subject: &Subject, worst: &mut Worst) -> Result<()> {
    for (lengths, channels, width) in
        subject.sizes(&[(vec![37, 2, 28], 131, 4)], &[(vec![1, 1], 1, 1), (vec![1031, 5], 264, 3)])
    {
        let (layout, n) = (Layout::new(&lengths), lengths.iter().sum());
        let weight = subject.values_of(DType::F32, &[channels, width], 3)?;
        for lie in Lie::ALL {
            let (x, dy) = (subject.matrix(n, channels, lie, 1)?, subject.matrix(n, channels, lie, 2)?);
            let (y, saved) = (subject.operations.causal_conv)(&x, &weight, &layout, None)?;
            let (dx, dw) = causal_conv::backward(&saved, &weight, &dy, &layout, true)?;
            let (expected, gradients) = oracle(&[&x, &weight], &dy, |v| convolved(&v[0], &v[1], &lengths))?;
            let at = |what: &str| format!("{what} of {lengths:?} x {channels}, {width} wide, {lie}");
            worst.note(at("y"), subject.dtype, &y, &expected)?;
            worst.note(at("dx"), subject.dtype, &dx, &gradients[0])?;
            worst.note(at("dw"), DType::F32, &dw.context("a gradient that was wanted")?, &gradients[1])?;
        }
    }
    Ok(())
}

/// Position by position, from the recurrence.
fn recurrent(inputs: &[Tensor], shape: Shape, lengths: &[usize]) -> candle_core::Result<Tensor> {
    let Shape { key_heads, value_heads, key_dim, value_dim } = shape;
    let ([mixed, decay, beta], keys) = ([&inputs[0], &inputs[1], &inputs[2]], key_heads * key_dim);
    let n = mixed.dim(0)?;
    let heads = |start: usize, scale: f64| {
        let x = mixed.narrow(1, start, keys)?.reshape((n, key_heads, 1, key_dim))?;
        let x = (x.broadcast_div(&(x.sqr()?.sum_keepdim(D::Minus1)? + 1e-6)?.sqrt()?)? * scale)?;
        x.broadcast_as((n, key_heads, value_heads / key_heads, key_dim))?.reshape((n, value_heads, key_dim))
    };
    let (q, k) = (heads(0, (key_dim as f64).powf(-0.5))?, heads(keys, 1.0)?);
    let v = mixed.narrow(1, 2 * keys, shape.value_width())?.reshape((n, value_heads, value_dim))?;
    let (mut start, mut rows) = (0, vec![]);
    for &length in lengths {
        let mut state = Tensor::zeros((value_heads, key_dim, value_dim), mixed.dtype(), mixed.device())?;
        for t in start..start + length {
            let number = |x: &Tensor| x.get(t)?.reshape((value_heads, 1, 1));
            let (q, k, v) = (q.get(t)?.unsqueeze(2)?, k.get(t)?.unsqueeze(2)?, v.get(t)?.unsqueeze(1)?);
            state = state.broadcast_mul(&number(decay)?.exp()?)?;
            let seen = state.broadcast_mul(&k)?.sum_keepdim(1)?;
            state = (state + k.broadcast_mul(&(v - seen)?.broadcast_mul(&number(beta)?)?)?)?;
            rows.push(state.broadcast_mul(&q)?.sum(1)?.flatten_all()?);
        }
        start += length;
    }
    Tensor::stack(&rows, 0)
}

fn recurrences(subject: &Subject, worst: &mut Worst) -> Result<()> {
    let small = Shape { key_heads: 2, value_heads: 4, key_dim: 6, value_dim: 10 };
    let large = Shape { key_heads: 1, value_heads: 2, key_dim: 32, value_dim: 17 };
    for (shape, lengths) in subject.sizes(&[(small, vec![70, 3])], &[(small, vec![1]), (large, vec![150, 64, 65])]) {
        let (layout, n) = (Layout::new(&lengths), lengths.iter().sum());
        let numbers = |seed| subject.values_of(DType::F32, &[n, shape.value_heads], seed);
        // Mild decays, so that far positions matter.
        let (decay, beta) = (((numbers(2)? - 1.0)? * 0.1)?, ((numbers(3)? + 1.0)? * 0.5)?);
        for lie in [Lie::Whole, Lie::Turned] {
            let mixed = subject.matrix(n, shape.mixed_width(), lie, 1)?;
            let dy = subject.matrix(n, shape.value_width(), lie, 4)?;
            let (y, _, saved) = (subject.operations.delta_rule)([&mixed, &decay, &beta], shape, &layout, None)?;
            let gradients = delta_rule::backward(&saved, &dy, shape, &layout)?;
            let (expected, exact) = oracle(&[&mixed, &decay, &beta], &dy, |v| recurrent(v, shape, &lengths))?;
            let at = |what: &str| format!("{what} of {lengths:?}, {shape:?}, {lie}");
            worst.note(at("y"), subject.dtype, &y, &expected)?;
            for ((what, got), exact) in ["d mixed", "dg", "dβ"].into_iter().zip(&gradients).zip(&exact) {
                worst.note(at(what), subject.dtype, got, exact)?;
            }
        }
    }
    Ok(())
}

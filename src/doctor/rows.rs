//! What works row by row or value by value: norms, rotations, gates, dropout, sums.

use super::check::Check;
use super::subject::{Lie, Subject, Tolerance, Worst, exact, oracle};
use crate::ops::activation::Activation;
use crate::ops::dropout::mix;
use crate::ops::rope::{Angles, Heads, Stretch};
use crate::ops::{dropout, gpu, rms_norm, softcap, sum};
use anyhow::Result;
use candle_core::{D, DType, Device, Tensor};

const SMALL: &[(usize, usize)] = &[(67, 131)];
const LARGE: &[(usize, usize)] = &[(1, 8192), (1027, 64), (33, 5003)];

pub const CHECKS: &[Check] = &[
    Check::new("rms_norm", "forward and both gradients", Tolerance { wide: 128.0, narrow: 4.0 }, norms)
        .by("rms_norm", || gpu::RMS_NORM.switch_off()),
    Check::new("rope", "forward and backward, at far positions", Tolerance { wide: 16.0, narrow: 2.0 }, rotations)
        .by("rope", || gpu::ROPE.switch_off()),
    Check::new("gated_mlp", "SwiGLU and GeGLU, forward and backward", Tolerance { wide: 64.0, narrow: 2.0 }, gates)
        .by("gated_mlp", || gpu::GATED_MLP.switch_off()),
    Check::new("softcap", "forward and backward", Tolerance { wide: 64.0, narrow: 4.0 }, caps)
        .by("softcap", || gpu::SOFTCAP.switch_off()),
    Check::new("dropout", "the mask of the CPU, value by value", Tolerance { wide: 2.0, narrow: 2.0 }, masks)
        .by("dropout", || gpu::DROPOUT.switch_off()),
    Check::new("sum", "residual sums, squares, what is not finite", Tolerance { wide: 64.0, narrow: 2.0 }, sums)
        .by("sum", || gpu::SUM.switch_off()),
];

const EPS: f64 = 1e-5;

fn normed(x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?.recip()?;
    x.broadcast_mul(&scale)?.broadcast_mul(weight)
}

fn norms(subject: &Subject, worst: &mut Worst) -> Result<()> {
    let ops = &subject.operations;
    for (n, d) in subject.sizes(SMALL, LARGE) {
        for lie in Lie::ALL {
            let at = |what: &str| format!("{what} of {n} x {d}, {lie}");
            let (x, dy) = (subject.matrix(n, d, lie, 1)?, subject.matrix(n, d, lie, 2)?);
            let weight = subject.values_of(DType::F32, &[d], 3)?;
            let (y, saved) = (ops.rms_norm)(&x, &weight, EPS)?;
            let dx = (ops.rms_norm_backward)(&saved, &weight, &dy)?;
            let (exact_y, gradients) = oracle(&[&x, &weight], &dy, |v| normed(&v[0], &v[1]))?;
            worst.note(at("y"), subject.dtype, &y, &exact_y)?;
            worst.note(at("dx"), subject.dtype, &dx, &gradients[0])?;
            worst.note(at("dw"), DType::F32, &rms_norm::backward_weight(&saved, &dy)?, &gradients[1])?;
            // With the sums of a residual connection; where these are rounded, the norm is of what they came to.
            let (added, exact_weight) = (subject.matrix(n, d, lie, 4)?, exact(&weight)?);
            let (sum, y, saved) = rms_norm::forward_sum(&x, &added, &weight, EPS)?;
            worst.note(at("x + added"), subject.dtype, &sum, &(exact(&x)? + exact(&added)?)?)?;
            let (exact_y, gradients) = oracle(&[&sum], &dy, |v| normed(&v[0], &exact_weight))?;
            worst.note(at("y of a sum"), subject.dtype, &y, &exact_y)?;
            let dx = rms_norm::backward_input_sum(&saved, &weight, &dy, &added)?;
            worst.note(at("dx and a sum"), subject.dtype, &dx, &(&gradients[0] + exact(&added)?)?)?;
        }
    }
    Ok(())
}

/// By the definition: x [N, H · D], cos and sin [N, 1, R / 2].
fn rotated(x: &Tensor, (cos, sin): (&Tensor, &Tensor), heads: Heads) -> candle_core::Result<Tensor> {
    let Heads { head_dim, rotary_dim, interleaved } = heads;
    let ((n, width), half) = (x.dims2()?, rotary_dim / 2);
    let (count, pairs_at) = (width / head_dim, if interleaved { 3 } else { 2 });
    let x = x.reshape((n, count, head_dim))?;
    let (k, l) = if interleaved { (half, 2) } else { (2, half) };
    let pairs = x.narrow(2, 0, rotary_dim)?.reshape((n, count, k, l))?;
    let (a, b) = (pairs.narrow(pairs_at, 0, 1)?.squeeze(pairs_at)?, pairs.narrow(pairs_at, 1, 1)?.squeeze(pairs_at)?);
    let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    let second = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
    let turned = Tensor::stack(&[first, second], pairs_at)?.reshape((n, count, rotary_dim))?;
    if rotary_dim == head_dim {
        return turned.reshape((n, width));
    }
    let rest = x.narrow(2, rotary_dim, head_dim - rotary_dim)?;
    Tensor::cat(&[turned, rest], 2)?.reshape((n, width))
}

fn rotations(subject: &Subject, worst: &mut Worst) -> Result<()> {
    const HEADS: usize = 3;
    // Two sequences, the second from a far position on.
    let parts = [(0, 41), (31_000, 26)];
    let n = 67;
    let part = |interleaved| Heads { head_dim: 66, rotary_dim: 38, interleaved };
    for (heads, magnitude) in
        [(Heads::whole(64), 1.0f32), (Heads::whole(66), 1.25), (part(false), 1.0), (part(true), 1.0)]
    {
        let half = heads.rotary_dim / 2;
        let frequencies: Vec<f32> = (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect();
        let stretches =
            parts.map(|(start, length)| Stretch { start, length, frequencies: frequencies.clone(), magnitude });
        let angles = Angles::new(&stretches, &subject.device)?.of(heads);
        let positions = parts.iter().flat_map(|&(start, length)| start..start + length);
        let turns: Vec<f64> =
            positions.flat_map(|p| frequencies.iter().map(move |f| f64::from(p as f32 * f))).collect();
        let turns = Tensor::from_vec(turns, (n, 1, half), &Device::Cpu)?;
        let (cos, sin) = ((turns.cos()? * f64::from(magnitude))?, (turns.sin()? * f64::from(magnitude))?);
        for lie in Lie::ALL {
            let [x, dy] = [1, 2].map(|seed| subject.matrix(n, HEADS * heads.head_dim, lie, seed));
            let (x, dy) = (x?, dy?);
            let (expected, gradients) = oracle(&[&x], &dy, |v| rotated(&v[0], (&cos, &sin), heads))?;
            let at = |what: &str| format!("{what}, {heads:?}, {lie}");
            worst.note(at("y"), subject.dtype, &(subject.operations.rope)(&x, &angles)?, &expected)?;
            worst.note(at("dx"), subject.dtype, &(subject.operations.rope_backward)(&dy, &angles)?, &gradients[0])?;
        }
    }
    Ok(())
}

/// From the definitions.
fn activated(activation: Activation, x: &Tensor) -> candle_core::Result<Tensor> {
    match activation {
        Activation::Silu => x / (x.neg()?.exp()? + 1.0)?,
        Activation::Sigmoid => (x.neg()?.exp()? + 1.0)?.recip(),
        Activation::GeluTanh => {
            let z = ((x + (x.powf(3.0)? * 0.044715)?)? * (2.0 / std::f64::consts::PI).sqrt())?;
            (x * 0.5)? * (z.tanh()? + 1.0)?
        }
    }
}

fn gates(subject: &Subject, worst: &mut Worst) -> Result<()> {
    let ops = &subject.operations;
    for activation in Activation::ALL {
        for (n, d) in subject.sizes(SMALL, LARGE) {
            for lie in Lie::ALL {
                let [gate, up, dy] = [1, 2, 3].map(|seed| subject.matrix(n, d, lie, seed));
                let (gate, up, dy) = (gate?, up?, dy?);
                let y = (ops.gated_mlp)(&gate, &up, activation)?;
                let (d_gate, d_up) = (ops.gated_mlp_backward)(&gate, &up, &dy, activation)?;
                let (expected, gradients) = oracle(&[&gate, &up], &dy, |v| activated(activation, &v[0])? * &v[1])?;
                let at = |what: &str| format!("{what} of {activation:?}, {n} x {d}, {lie}");
                worst.note(at("y"), subject.dtype, &y, &expected)?;
                worst.note(at("dg"), subject.dtype, &d_gate, &gradients[0])?;
                worst.note(at("du"), subject.dtype, &d_up, &gradients[1])?;
            }
        }
    }
    Ok(())
}

fn caps(subject: &Subject, worst: &mut Worst) -> Result<()> {
    // Scores and logits are f32.
    let [x, dy] = [1, 2].map(|seed| subject.values_of(DType::F32, &[67, 131], seed));
    let (x, dy) = ((x? * 4.0)?, dy?);
    let y = softcap::forward(&x, 3.0)?;
    let (expected, gradients) = oracle(&[&x], &dy, |v| (&v[0] / 3.0)?.tanh()? * 3.0)?;
    worst.note("y", DType::F32, &y, &expected)?;
    worst.note("dx", DType::F32, &softcap::backward(&y, &dy, 3.0)?, &gradients[0])
}

fn masks(subject: &Subject, worst: &mut Worst) -> Result<()> {
    let key = 0xfeed_5eed;
    for (n, d) in subject.sizes(SMALL, &[(1, 1), (7, 100_003)]) {
        for (dtype, probability) in [(DType::F32, 0.05), (subject.dtype, 0.5)] {
            let x = subject.values_of(dtype, &[n, d], 1)?;
            let threshold = (probability * 2f64.powi(32)) as u64;
            let kept =
                |i: u64| if mix(i.wrapping_add(key)) >> 32 < threshold { 0.0 } else { 1.0 / (1.0 - probability) };
            let mask = Tensor::from_vec((0..(n * d) as u64).map(kept).collect::<Vec<f64>>(), (n, d), &Device::Cpu)?;
            let y = (subject.operations.dropout)(&x, probability, key)?;
            let (at, expected) = (|what: &str| format!("{what}{n} x {d} at {probability}"), (exact(&x)? * &mask)?);
            worst.note(at(""), dtype, &y, &expected)?;
            worst.note(at("widened, "), DType::F32, &dropout::apply_widened(&x, probability, key)?, &expected)?;
            let (sum, wide) = (subject.values_of(dtype, &[n, d], 2)?, subject.values_of(DType::F32, &[n, d], 1)?);
            let masked = (exact(&wide)? * &mask)?;
            worst.note(
                at("added, "),
                dtype,
                &dropout::add(&sum, &wide, probability, key)?,
                &(exact(&sum)? + masked)?,
            )?;
        }
    }
    Ok(())
}

fn sums(subject: &Subject, worst: &mut Worst) -> Result<()> {
    for (n, d) in subject.sizes(SMALL, LARGE) {
        let [x, y] = [1, 2].map(|seed| subject.matrix(n, d, Lie::Part, seed));
        let (x, y) = (x?, y?);
        let wide = exact(&x)?;
        worst.note(format!("x + y of {n} x {d}"), subject.dtype, &sum::add(&x, &y)?, &(&wide + exact(&y)?)?)?;
        let added = subject.matrix_of(DType::F32, n, d, Lie::Whole, 3)?;
        let both = (&wide + exact(&added)?)?;
        worst.note(format!("x + y in f32, {n} x {d}"), subject.dtype, &sum::add(&x, &added)?, &both)?;
        let squares = wide.sqr()?.sum_all()?.to_scalar::<f64>()?;
        worst.number(format!("squares of {n} x {d}"), DType::F32, sum::square_sum(&x)?.read()?, squares);
    }
    for (value, expected) in [(1.0, 1.0), (f64::NAN, 0.0), (f64::INFINITY, 0.0), (f64::NEG_INFINITY, 0.0)] {
        let x = subject.values(&[67, 131], 3)?;
        let last = Tensor::new(&[[value as f32]], &Device::Cpu)?.to_dtype(subject.dtype)?.to_device(&subject.device)?;
        let x = Tensor::cat(&[x.flatten_all()?.unsqueeze(0)?, last], 1)?;
        let found = f64::from(u8::from(sum::is_finite(&x)?));
        worst.number(format!("whether all is finite beside {value}"), DType::F32, found, expected);
    }
    Ok(())
}

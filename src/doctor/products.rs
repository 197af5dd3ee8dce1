//! Linear layers, the loss over the head, the penalty's small products, AdamW.

use super::check::Check;
use super::subject::{Lie, Subject, Tolerance, Worst, exact, oracle};
use crate::model::{Gradients, Parameters};
use crate::ops::low_rank::grouped::{self, Adapted};
use crate::ops::low_rank::{self, Image};
use crate::ops::weight::Weight;
use crate::ops::{gpu, linear};
use crate::optim::AdamW;
use crate::quant::ggml::GgmlType;
use crate::quant::{Format, Kind};
use anyhow::Result;
use candle_core::{D, DType, Device, Tensor, Var};

pub const CHECKS: &[Check] = &[
    Check::new("linear", "forward and every gradient", Tolerance { wide: 256.0, narrow: 4.0 }, linears),
    Check::new("logits", "products in f32 of any operands", Tolerance { wide: 256.0, narrow: 4.0 }, logits)
        .by("cross_entropy", || gpu::CROSS_ENTROPY.switch_off()),
    Check::new("cross_entropy", "losses and gradients over the head", Tolerance { wide: 256.0, narrow: 8.0 }, losses)
        .by("cross_entropy", || gpu::CROSS_ENTROPY.switch_off()),
    Check::new("quantised", "weights of four and eight bits, widened", Tolerance { wide: 4.0, narrow: 1.0 }, quantised)
        .by("quantised", || {
            gpu::QUANTISED.switch_off();
            gpu::GGML.switch_off();
        }),
    Check::new("penalty", "the r x r products and their images", Tolerance { wide: 256.0, narrow: 2.0 }, low_ranks),
    Check::new("penalties", "those of several modules together", Tolerance { wide: 256.0, narrow: 2.0 }, penalties)
        .by("penalty", || gpu::PENALTY.switch_off()),
    Check::new("adamw", "three steps, and the squares of gradients", Tolerance { wide: 64.0, narrow: 2.0 }, optimizer)
        .by("parameters", || gpu::PARAMETERS.switch_off()),
];

fn linears(subject: &Subject, worst: &mut Worst) -> Result<()> {
    for (n, d_in, d_out) in subject.sizes(&[(67, 131, 33), (1, 64, 257)], &[(5, 4097, 17), (513, 72, 1031)]) {
        for lie in Lie::ALL {
            let (x, dy) = (subject.matrix(n, d_in, lie, 1)?, subject.matrix(n, d_out, lie, 2)?);
            let (weight, bias) = (subject.matrix(d_out, d_in, lie, 3)?, subject.values(&[d_out], 4)?);
            let (expected, gradients) =
                oracle(&[&x, &weight, &bias], &dy, |v| v[0].matmul(&v[1].t()?)?.broadcast_add(&v[2]))?;
            let at = |what: &str| format!("{what} of {n} x {d_in} x {d_out}, {lie}");
            let y = linear::forward(&x, &weight, Some(&bias))?;
            worst.note(at("y"), subject.dtype, &y, &expected)?;
            worst.note(at("dx"), subject.dtype, &linear::backward_input(&dy, &weight)?, &gradients[0])?;
            worst.note(at("dW"), subject.dtype, &linear::backward_weight(&dy, &x)?, &gradients[1])?;
            worst.note(at("db"), DType::F32, &linear::backward_bias(&dy)?, &gradients[2])?;
            adapted(subject, worst, (&x, &weight), lie)?;
        }
    }
    Ok(())
}

/// x Wᵀ + z Bᵀ with z and B in f32, as for a layer with an adapter.
fn adapted(subject: &Subject, worst: &mut Worst, (x, weight): (&Tensor, &Tensor), lie: Lie) -> Result<()> {
    let ((n, _), (d_out, _)) = (x.dims2()?, weight.dims2()?);
    let z = subject.matrix_of(DType::F32, n, 8, lie, 5)?;
    let b = subject.matrix_of(DType::F32, d_out, 8, lie, 6)?;
    let whole = exact(x)?.matmul(&exact(weight)?.t()?)?;
    let expected = (whole + exact(&z)?.matmul(&exact(&b)?.t()?)?)?;
    let y = linear::forward_sum(&[(x, weight), (&z, &b)], None)?;
    worst.note(format!("y with an adapter, {n} x {d_out}, {lie}"), subject.dtype, &y, &expected)
}

fn logits(subject: &Subject, worst: &mut Worst) -> Result<()> {
    for (n, d, vocab) in subject.sizes(&[(67, 131, 33), (1, 64, 257)], &[(5, 4097, 17), (513, 72, 1031)]) {
        for lie in Lie::ALL {
            let (x, weight) = (subject.matrix(n, d, lie, 1)?, subject.matrix(vocab, d, lie, 3)?);
            let expected = exact(&x)?.matmul(&exact(&weight)?.t()?)?;
            let at = format!("logits of {n} x {d} over {vocab}, {lie}");
            worst.note(at, subject.dtype, &linear::forward_f32(&x, &weight)?, &expected)?;
        }
    }
    Ok(())
}

fn losses(subject: &Subject, worst: &mut Worst) -> Result<()> {
    for (m, d, vocab) in subject.sizes(&[(67, 33, 1031)], &[(1, 7, 1), (3, 16, 152_064), (131, 64, 32_003)]) {
        for (lie, cap) in [(Lie::Whole, None), (Lie::Part, Some(2.0)), (Lie::Turned, None)] {
            let (hidden, head) = (subject.matrix(m, d, lie, 1)?, subject.matrix(vocab, d, lie, 2)?);
            let targets: Vec<u32> = (0..m).map(|i| ((i * 7919 + vocab - 1) % vocab) as u32).collect();
            let (got, gradients) = (subject.operations.cross_entropy)(&hidden, &head, &targets, 1.0, true, cap)?;
            let ids = Tensor::new(targets, &Device::Cpu)?.unsqueeze(1)?;
            let ones = Tensor::ones((m, 1), DType::F64, &Device::Cpu)?;
            let (expected, exact_gradients) = oracle(&[&hidden, &head], &ones, |v| {
                let logits = v[0].matmul(&v[1].t()?)?;
                let logits = if let Some(cap) = cap { ((logits / cap)?.tanh()? * cap)? } else { logits };
                candle_nn::ops::log_softmax(&logits, D::Minus1)?.gather(&ids, 1)?.neg()
            })?;
            let at = |what: &str| format!("{what} of {m} x {d} over {vocab}, cap {cap:?}, {lie}");
            let got = Tensor::from_vec(got.read()?, (m, 1), &Device::Cpu)?;
            worst.note(at("losses"), subject.dtype, &got, &expected)?;
            worst.note(at("dh"), subject.dtype, &gradients.hidden, &exact_gradients[0])?;
            if let Some(head) = &gradients.head {
                worst.note(at("dW"), subject.dtype, head, &exact_gradients[1])?;
            }
        }
    }
    Ok(())
}

fn quantised(subject: &Subject, worst: &mut Worst) -> Result<()> {
    let ggml = [GgmlType::Q8_0, GgmlType::Q4K].map(Format::Ggml);
    // Metal has no such weights.
    let ggml = ggml.into_iter().filter(|_| !subject.device.is_metal()).map(|format| (format, (5, 512)));
    let of_four = [(33, 65), (7, 1030)].map(|shape| (Format::FourBit(Kind::Nf4), shape));
    for (format, (rows, columns)) in ggml.chain(of_four) {
        let values = subject.values_of(DType::F32, &[rows * columns], 1)?.to_vec1::<f32>()?;
        let matrix = format.quantise((rows, columns), &values)?;
        let expected = exact(&Tensor::from_vec(matrix.widened(), (rows, columns), &Device::Cpu)?)?;
        let got = Weight::quantised(matrix, &subject.device)?.dense(subject.dtype)?;
        worst.note(format!("{format}, {rows} x {columns}"), subject.dtype, &got, &expected)?;
    }
    Ok(())
}

fn low_ranks(subject: &Subject, worst: &mut Worst) -> Result<()> {
    for (r, d_in, d_out) in subject.sizes(&[(8, 131, 67)], &[(1, 33, 5), (16, 1031, 513)]) {
        let of = |rows, columns, seed| subject.values_of(DType::F32, &[rows, columns], seed);
        let (a, g, h) = (of(r, d_in, 1)?, of(d_out, r, 2)?, of(d_out, r, 3)?);
        let (inner, grad_a, grad_b) = low_rank::products(&a, (&g, &g), &h, 0.7)?;
        let (a, g, h) = (exact(&a)?, exact(&g)?, exact(&h)?);
        let (s, t) = (a.matmul(&a.t()?)?, g.t()?.matmul(&g)?);
        let at = |what: &str| format!("{what} of rank {r}, {d_out} x {d_in}");
        let value = (&s * &t)?.sum_all()?.to_scalar::<f64>()?;
        worst.number(at("value"), DType::F32, inner.read()?, value);
        worst.note(at("dA"), DType::F32, &grad_a, &(t.matmul(&a)? * 0.7)?)?;
        worst.note(at("dB"), DType::F32, &grad_b, &(h.matmul(&s)? * 0.7)?)?;
        let (y, c, e) = (of(d_out, r, 4)?, of(d_out, 1, 5)?, of(d_out, 1, 6)?);
        let both = low_rank::weighted(&y, &[&c, &e])?;
        let (y, c, e) = (exact(&y)?, exact(&c)?, exact(&e)?);
        let expected = Tensor::cat(&[y.broadcast_mul(&c)?, y.broadcast_mul(&e)?], 1)?;
        worst.note(at("weighted columns"), DType::F32, &both, &expected)?;
    }
    Ok(())
}

fn penalties(subject: &Subject, worst: &mut Worst) -> Result<()> {
    let mut modules: Vec<[Tensor; 6]> = vec![];
    for (r, d_in, d_out, k) in subject.sizes(&[(8, 131, 67, 33), (3, 300, 517, 17)], &[(16, 1031, 513, 513)]) {
        let of = |rows, columns, seed| subject.values_of(DType::F32, &[rows, columns], seed);
        // Columns of about the length that U's have.
        let basis = (of(d_out, k, 3)? * (d_out as f64).powf(-0.5))?;
        modules.push([of(r, d_in, 1)?, of(d_out, r, 2)?, basis, of(k, 1, 4)?, of(r, d_in, 5)?, of(d_out, r, 6)?]);
    }
    let expected: Vec<[Tensor; 3]> = modules.iter().map(penalised).collect::<Result<_>>()?;
    let adapted = modules.iter().map(|[a, b, basis, c, of_a, of_b]| Adapted {
        a,
        b,
        direction: Some((basis, c)),
        weight: 0.7,
        gradients: [of_a, of_b],
    });
    let values = grouped::add(&adapted.collect::<Vec<_>>(), Image::Rest)?;
    for (i, (module, [value, grad_a, grad_b])) in modules.iter().zip(&expected).enumerate() {
        let [a, .., of_a, of_b] = module;
        let (got, of_a, of_b) = match &values {
            Some(values) => (values.get(i)?, of_a.clone(), of_b.clone()),
            None => one_by_one(module)?,
        };
        let at = |what: &str| format!("{what} of rank {}, module {i}", a.dims()[0]);
        worst.note(at("value"), DType::F32, &got, value)?;
        worst.note(at("dA and a sum"), DType::F32, &of_a, grad_a)?;
        worst.note(at("dB and a sum"), DType::F32, &of_b, grad_b)?;
    }
    Ok(())
}

/// The same where no kernel does it for all modules.
fn one_by_one([a, b, basis, c, of_a, of_b]: &[Tensor; 6]) -> Result<(Tensor, Tensor, Tensor)> {
    let (g, h) = low_rank::images(basis, c, b, Image::Rest)?;
    let (value, grad_a, grad_b) = low_rank::products(a, (&g, &g), &h, 1.4)?;
    let value = Tensor::new(value.times(0.7).read()?, &Device::Cpu)?;
    Ok((value, (of_a + grad_a)?, (of_b + grad_b)?))
}

/// The value of 0.7 ‖(I − C) B A‖², and its gradients added to those of a module, in f64.
fn penalised(module: &[Tensor; 6]) -> Result<[Tensor; 3]> {
    let wide: Vec<Tensor> = module.iter().map(exact).collect::<Result<_>>()?;
    let [a, b, basis, c, of_a, of_b] = &wide[..] else { anyhow::bail!("six matrices") };
    let y = basis.t()?.matmul(b)?;
    let rest = |weights: &Tensor| b - basis.matmul(&y.broadcast_mul(weights)?)?;
    let (g, h) = (rest(c)?, rest(&((c * 2.0)? - c.sqr()?)?)?);
    let (s, t) = (a.matmul(&a.t()?)?, g.t()?.matmul(&g)?);
    let (grad_a, grad_b) = ((t.matmul(a)? * 1.4)?, (h.matmul(&s)? * 1.4)?);
    Ok([((&s * &t)?.sum_all()? * 0.7)?, (of_a + grad_a)?, (of_b + grad_b)?])
}

fn optimizer(subject: &Subject, worst: &mut Worst) -> Result<()> {
    let ([beta1, beta2], epsilon, decay, rate, clipping) = ([0.9f64, 0.99f64], 1e-8, 0.1, 0.01, 0.5);
    let start = subject.values_of(DType::F32, &[67, 131], 1)?;
    let parameters = Parameters::from([("w".to_string(), Var::from_tensor(&start)?)]);
    let mut adamw = AdamW::new([beta1, beta2], epsilon, decay);
    let mut theta = exact(&start)?;
    let (mut m, mut v) = (theta.zeros_like()?, theta.zeros_like()?);
    for step in 1..=3 {
        let gradient = subject.values_of(DType::F32, &[67, 131], 1 + step as u64)?;
        let mut gradients = Gradients::default();
        gradients.add("w", gradient.clone())?;
        let [square] = &gradients.squares()?[..] else { anyhow::bail!("one gradient, one square") };
        worst.number("‖g‖²", DType::F32, square.read()?, exact(&gradient)?.sqr()?.sum_all()?.to_scalar()?);
        adamw.step(&parameters, &gradients, rate, clipping)?;
        let g = (exact(&gradient)? * clipping)?;
        m = ((m * beta1)? + (&g * (1.0 - beta1))?)?;
        v = ((v * beta2)? + (g.sqr()? * (1.0 - beta2))?)?;
        let (unbiased_m, unbiased_v) = ((&m / (1.0 - beta1.powi(step)))?, (&v / (1.0 - beta2.powi(step)))?);
        let moved = (unbiased_m / (unbiased_v.sqrt()? + epsilon)?)?;
        theta = ((theta * (1.0 - rate * decay))? - (moved * rate)?)?;
    }
    let moments = adamw.moments();
    worst.note("the parameter", DType::F32, parameters["w"].as_tensor(), &theta)?;
    worst.note("m", DType::F32, &moments["w.exp_avg"], &m)?;
    worst.note("v", DType::F32, &moments["w.exp_avg_sq"], &v)
}

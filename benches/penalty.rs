//! The penalty's value and gradients in closed form, against the literal formula on the same numbers; then a whole
//! model's penalty, as computed once per optimizer step, beside the time of the step without it.

mod support;

use asft::method::{AsftOptions, Direction, Operator, Penalize, Penalty};
use asft::model::Gradients;
use asft::names::Targets;
use asft::ops::machine::best;
use asft::train::Penalties;
use candle_core::{DType, Device, Tensor};
use serde_json::json;
use support::model::{adapted, adapter, batch, directions, list, random_model, trainer};
use support::{Limits, in_pool, saved, tensor};

const RANK: usize = 8;
/// What SmolLM2-135M keeps of 576 directions at the default tolerance: 359.
const DEFAULT_SHARE: f64 = 359.0 / 576.0;

fn main() -> anyhow::Result<()> {
    in_pool(run)
}

fn run() -> anyhow::Result<()> {
    let limits = Limits::measure();
    for (d_out, d_in, k) in [(576, 576, 359), (1536, 576, 576), (3584, 3584, 3584), (3584, 3584, 256)] {
        // Timing does not need the basis to be orthonormal.
        let direction = Direction {
            shape: (d_out, d_in),
            basis: (tensor(&[d_out, k], 1) / (d_out as f64).sqrt())?,
            right: None,
            eigenvalues: (tensor(&[k], 2).abs()? * 0.1)?.to_vec1()?,
            v_norm: 1.0,
            residual: 0.0,
        };
        let options = AsftOptions::default();
        let operator = Operator::new(&options, &direction, &Device::Cpu)?;
        let penalty = Penalty::new(&options)?;
        let (a, b) = (tensor(&[RANK, d_in], 3), tensor(&[d_out, RANK], 4));
        // U' B and U (c U' B).
        let flops = 2.0 * (2 * d_out * k * RANK) as f64;
        let name = format!("{d_out} x {d_in}, k {k}");
        limits.flops(&format!("{name}: closed form"), flops, || drop(penalty.lora(Some(&operator), &a, &b, 4.0)));

        let delta = tensor(&[d_out, d_in], 6);
        let flops = 2.0 * (2 * d_out * k * d_in) as f64;
        limits.flops(&format!("{name}: full tuning"), flops, || drop(penalty.full(Some(&operator), &delta)));

        let c = tensor(&[d_out, d_out], 5);
        let complement = (Tensor::eye(d_out, DType::F32, &Device::Cpu)? - c)?;
        // (I - C) (B A), and for the gradient (I - C) of that; then its products with A and B.
        let literal = 2.0 * (2 * d_out * d_out * d_in + 3 * d_out * d_in * RANK) as f64;
        limits.flops(&format!("{name}: literal"), literal, || drop(literal_penalty(&complement, &a, &b)));
    }
    shares()
}

/// The penalty at SmolLM2-135M's shape, timed by itself, as a share of a step of 4 × 256 tokens.
fn shares() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let spec = random_model(dir.path())?;
    let batch = [batch(spec.vocab_size, 4, 256)];
    println!("\n{:<44} {:>12} {:>12} {:>8}", "a step of 4 x 256 tokens", "step, ms", "penalty, ms", "share");
    for (targets, name) in [(list(&["q_proj", "v_proj"]), "q, v"), (Targets::AllLinear, "all linears")] {
        let step = {
            let mut trainer = trainer(dir.path(), &spec, &targets, false, Penalize::None)?;
            best(|| {
                trainer.step(0, &batch, 1e-4).expect("a step of finite numbers");
            })
        };
        let (modules, adapter) = adapter(&spec, &targets)?;
        let model = adapted(dir.path(), &spec, &adapter)?;
        for (share, kept) in [(1.0, "every direction"), (DEFAULT_SHARE, "a default direction")] {
            let directions = directions(&dir.path().join("direction.safetensors"), &spec, &modules, share)?;
            let options = AsftOptions::default();
            let penalties = Penalties::new(&options, &modules, Some(&directions), Some(&adapter), &model)?;
            let penalty = best(|| {
                let mut gradients = Gradients::default();
                penalties.add_to(model.parameters(), &mut gradients, None).expect("a penalty of finite numbers");
            });
            let name = format!("{name}, {kept}");
            saved::row(json!({"name": name, "step_seconds": step, "penalty_seconds": penalty}));
            println!("{:<44} {:>12.0} {:>12.2} {:>7.2}%", name, step * 1e3, penalty * 1e3, 100.0 * penalty / step);
        }
    }
    Ok(())
}

/// (value, ∂A, ∂B) as the reference's autograd computes them.
fn literal_penalty(complement: &Tensor, a: &Tensor, b: &Tensor) -> anyhow::Result<(f32, Tensor, Tensor)> {
    let residual = complement.matmul(&b.matmul(a)?)?;
    let gradient = (complement.matmul(&residual)? * 2.0)?;
    Ok((residual.sqr()?.sum_all()?.to_scalar()?, b.t()?.matmul(&gradient)?, gradient.matmul(&a.t()?)?))
}

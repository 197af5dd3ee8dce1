//! The penalty of one matrix, by the library and by the formula: `cargo run --example penalty`.
//!
//! ```text
//! V = W_aligned − W_unaligned        C = V Vᵀ / ‖V‖_F        R = λ ‖(I − C) B A‖_F²
//! ```
//!
//! The library keeps V in its factors, C = U diag(c) Uᵀ, and never forms C, I − C or B A; the formula taken literally
//! forms all three. V is random here, and so are A and B, an adapter of rank 8.

use anyhow::Result;
use asft::method::{AsftOptions, Direction, Keep, Operator, Penalty};
use candle_core::{DType, Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const D_OUT: usize = 96;
const D_IN: usize = 128;
const RANK: usize = 8;
const LAMBDA: f64 = 0.5;

fn main() -> Result<()> {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let w_aligned = uniform(&mut random, (D_OUT, D_IN), 0.1)?;
    let w_unaligned = (&w_aligned - uniform(&mut random, (D_OUT, D_IN), 0.02)?)?;
    let v = (w_aligned - w_unaligned)?;
    let (a, b) = (uniform(&mut random, (RANK, D_IN), 0.1)?, uniform(&mut random, (D_OUT, RANK), 0.1)?);

    let options = AsftOptions { lambda: LAMBDA.into(), ..Default::default() };
    let direction = Direction::of(&v, Keep::Tolerance(0.0))?;
    let operator = Operator::new(&options, &direction, &Device::Cpu)?;
    let term = Penalty::new(&options)?.lora(Some(&operator), &a, &b, 1.0)?;
    let closed = term.value.read()?;
    let literal = literal(&v, &a, &b)?;

    println!("V [{D_OUT}, {D_IN}] in {} directions, c_1 = {:.4}", direction.rank(), direction.eigenvalues[0]);
    println!("closed form      {closed:.9}");
    println!("literal formula  {literal:.9}");
    println!("relative difference {:.1e}", (closed / literal - 1.0).abs());
    println!("gradients of the shapes {:?} (A) and {:?} (B)", term.grad_a.dims(), term.grad_b.dims());
    Ok(())
}

/// λ ‖(I − C) B A‖_F² in f64, with every matrix formed.
fn literal(v: &Tensor, a: &Tensor, b: &Tensor) -> Result<f64> {
    let wide = |x: &Tensor| x.to_dtype(DType::F64);
    let v = wide(v)?;
    let v_norm = v.sqr()?.sum_all()?.to_scalar::<f64>()?.sqrt();
    let c = (v.matmul(&v.t()?)? / v_norm)?;
    let identity = Tensor::eye(D_OUT, DType::F64, &Device::Cpu)?;
    let update = wide(b)?.matmul(&wide(a)?)?;
    let orthogonal = (identity - c)?.matmul(&update)?;
    Ok(LAMBDA * orthogonal.sqr()?.sum_all()?.to_scalar::<f64>()?)
}

/// Numbers between −`size` and `size`.
fn uniform(random: &mut ChaCha8Rng, shape: (usize, usize), size: f32) -> Result<Tensor> {
    let values = (0..shape.0 * shape.1).map(|_| random.random_range(-size..size)).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

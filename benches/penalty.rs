//! The penalty's value and gradients in closed form, against the literal formula on the same numbers.

mod support;

use asft::method::direction_file::DirectionFactors;
use asft::method::{AsftOptions, Factors, Penalty};
use candle_core::{DType, Device, Tensor};
use support::{Limits, tensor};

const RANK: usize = 8;

fn main() -> anyhow::Result<()> {
    asft::memory::keep_freed_buffers();
    let limits = Limits::measure();
    for (d_out, d_in, k) in [(576, 576, 359), (1536, 576, 576), (3584, 3584, 3584), (3584, 3584, 256)] {
        // An orthonormal basis is not needed to take the time of one.
        let direction = DirectionFactors {
            basis: (tensor(&[d_out, k], 1) / (d_out as f64).sqrt())?,
            eigenvalues: tensor(&[k], 2).abs()?,
            v_norm: 1.0,
            residual: 0.0,
        };
        let options = AsftOptions::default();
        let factors = Factors::new(&options, &direction, &Device::Cpu)?;
        let penalty = Penalty::new(&options)?;
        let (a, b) = (tensor(&[RANK, d_in], 3), tensor(&[d_out, RANK], 4));
        // U' B and U (c U' B), twice.
        let flops = 2.0 * (4 * d_out * k * RANK) as f64;
        let name = format!("{d_out} x {d_in}, k {k}");
        limits.flops(&format!("{name}: closed form"), flops, || drop(penalty.lora(Some(&factors), &a, &b, 4.0)));

        let c = tensor(&[d_out, d_out], 5);
        let complement = (Tensor::eye(d_out, DType::F32, &Device::Cpu)? - c)?;
        // (I - C) (B A), and for the gradient (I - C) of that; then its products with A and B.
        let literal = 2.0 * (2 * d_out * d_out * d_in + 3 * d_out * d_in * RANK) as f64;
        limits.flops(&format!("{name}: literal"), literal, || drop(literal_penalty(&complement, &a, &b)));
    }
    Ok(())
}

/// (value, ∂A, ∂B) as the reference's autograd computes them.
fn literal_penalty(complement: &Tensor, a: &Tensor, b: &Tensor) -> anyhow::Result<(f32, Tensor, Tensor)> {
    let residual = complement.matmul(&b.matmul(a)?)?;
    let gradient = (complement.matmul(&residual)? * 2.0)?;
    Ok((residual.sqr()?.sum_all()?.to_scalar()?, b.t()?.matmul(&gradient)?, gradient.matmul(&a.t()?)?))
}

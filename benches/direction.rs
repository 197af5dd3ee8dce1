//! One module's factors of C at the default tolerance and at a fixed rank, against the product V Vᵀ that any way to them
//! has to make.

mod support;

use asft::method::factorize::{DEFAULT_TOLERANCE, Keep, Setting, factorize};
use candle_core::Tensor;
use faer::Par;
use support::{Limits, tensor};

fn main() -> anyhow::Result<()> {
    asft::memory::keep_freed_buffers();
    let limits = Limits::measure();
    for (d_out, d_in) in [(576, 576), (1536, 576), (1024, 4096)] {
        for (kind, v) in [("noise", noise(d_out, d_in)?), ("fast decay", decaying(d_out, d_in)?)] {
            for keep in [Keep::Tolerance(DEFAULT_TOLERANCE), Keep::Rank(32)] {
                let setting = Setting { keep, memory: usize::MAX, par: Par::rayon(0) };
                let flops = 2.0 * (d_out * d_in * d_out.min(d_in)) as f64;
                let name = format!("{d_out} x {d_in} {kind}, {keep:?}");
                limits.flops(&name, flops, || drop(factorize(&|| Ok(v.clone()), (d_out, d_in), &setting)));
            }
        }
    }
    Ok(())
}

fn noise(d_out: usize, d_in: usize) -> anyhow::Result<Vec<f32>> {
    Ok(tensor(&[d_out, d_in], 1).flatten_all()?.to_vec1()?)
}

/// Sixteen directions that fall by half each, and a little noise.
fn decaying(d_out: usize, d_in: usize) -> anyhow::Result<Vec<f32>> {
    let strengths: Vec<f32> = (0..16).map(|i| 0.5f32.powi(i)).collect();
    let strengths = Tensor::from_vec(strengths, (1, 16), &candle_core::Device::Cpu)?;
    let v = tensor(&[d_out, 16], 2).broadcast_mul(&strengths)?.matmul(&tensor(&[16, d_in], 3))?;
    Ok((v + (tensor(&[d_out, d_in], 4) * 1e-4)?)?.flatten_all()?.to_vec1()?)
}

//! Factors of C at the default tolerance, against the products that any method must compute to get certified factors.
//!
//! With n the smaller side, m the larger and k directions: V Vᵀ (n × n of m, half of it), Vᵀ U (m × k of n) and
//! U diag(c) Uᵀ (n × n of k, half of it), the second in f32. One module per thread, as `asft direction` works; the
//! columns after the ratio are shares of the time. `direction -- long` adds the widths usual in a 2 GB pair.

mod support;

use asft::method::DEFAULT_TOLERANCE;
use asft::method::spectral::{Keep, Phases, Setting, factorize};
use asft::ops::machine::best;
use candle_core::Tensor;
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, Par};
use rayon::prelude::*;
use serde_json::json;
use support::{Limits, in_pool, saved, tensor};

const SHAPES: [(usize, usize); 3] = [(576, 576), (1536, 576), (576, 1536)];
const LONG: [(usize, usize); 4] = [(2048, 2048), (256, 2048), (5632, 2048), (2048, 5632)];

fn main() -> anyhow::Result<()> {
    in_pool(run)
}

fn run() -> anyhow::Result<()> {
    Limits::measure();
    println!(
        "{:<28} {:>5} {:>9} {:>12} {:>6} {:>9} {:>7} {:>8}",
        "modules side by side", "k", "s", "products, s", "ratio", "products", "eigen", "certify"
    );
    let long = std::env::args().any(|argument| argument == "long");
    for (d_out, d_in) in SHAPES.into_iter().chain(long.then_some(LONG).into_iter().flatten()) {
        for (kind, v) in [("noise", noise(d_out, d_in)?), ("fast decay", decaying(d_out, d_in)?)] {
            line(&format!("{d_out} x {d_in} {kind}"), &v, (d_out, d_in))?;
        }
    }
    Ok(())
}

fn line(name: &str, v: &[f32], shape: (usize, usize)) -> anyhow::Result<()> {
    let setting = Setting { keep: Keep::Tolerance(DEFAULT_TOLERANCE), memory: usize::MAX, par: Par::Seq };
    let threads = rayon::current_num_threads();
    let (found, _) = factorize(&|| Ok(v.to_vec()), shape, &setting)?;
    let mut phases = Phases::default();
    let seconds = best(|| {
        let all: Vec<Phases> = (0..threads)
            .into_par_iter()
            .map(|_| factorize(&|| Ok(v.to_vec()), shape, &setting).expect("as just now").1)
            .collect();
        phases = all[0];
    });
    let products = products(shape, found.rank(), threads);
    saved::row(json!({"name": name, "k": found.rank(), "seconds": seconds, "products_seconds": products}));
    let all = phases.read + phases.products + phases.eigen + phases.certify;
    println!(
        "{name:<28} {:>5} {seconds:>9.3} {products:>12.3} {:>6.2} {:>8.0}% {:>6.0}% {:>7.0}%",
        found.rank(),
        seconds / products,
        100.0 * phases.products / all,
        100.0 * phases.eigen / all,
        100.0 * phases.certify / all
    );
    Ok(())
}

/// Seconds of the products, on every thread at once.
fn products((d_out, d_in): (usize, usize), k: usize, threads: usize) -> f64 {
    use BlockStructure::{Rectangular, TriangularLower};
    let (n, m) = (d_out.min(d_in), d_out.max(d_in));
    let (v, v_narrow) = (Mat::<f64>::from_fn(n, m, |_, _| 0.5), Mat::<f32>::from_fn(n, m, |_, _| 0.5));
    let (u, u_narrow) = (Mat::<f64>::from_fn(n, k, |_, _| 0.25), Mat::<f32>::from_fn(n, k, |_, _| 0.25));
    best(|| {
        (0..threads).into_par_iter().for_each(|_| {
            let mut square = Mat::<f64>::zeros(n, n);
            let mut right = Mat::<f32>::zeros(m, k);
            for x in [&v, &u] {
                let (lower, sum, par) = (TriangularLower, Accum::Add, Par::Seq);
                triangular::matmul(&mut square, lower, sum, x, Rectangular, x.transpose(), Rectangular, 1.0, par);
            }
            matmul(&mut right, Accum::Replace, v_narrow.transpose(), &u_narrow, 1.0, Par::Seq);
        });
    })
}

fn noise(d_out: usize, d_in: usize) -> anyhow::Result<Vec<f32>> {
    Ok(tensor(&[d_out, d_in], 1).flatten_all()?.to_vec1()?)
}

/// Sixteen directions, each half as strong as the last, and a little noise.
fn decaying(d_out: usize, d_in: usize) -> anyhow::Result<Vec<f32>> {
    let strengths: Vec<f32> = (0..16).map(|i| 0.5f32.powi(i)).collect();
    let strengths = Tensor::from_vec(strengths, (1, 16), &candle_core::Device::Cpu)?;
    let v = tensor(&[d_out, 16], 2).broadcast_mul(&strengths)?.matmul(&tensor(&[16, d_in], 3))?;
    Ok((v + (tensor(&[d_out, d_in], 4) * 1e-4)?)?.flatten_all()?.to_vec1()?)
}

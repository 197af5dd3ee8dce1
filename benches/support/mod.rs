//! What the benchmarks share: seeded tensors, the machine's limits, lines that compare a time with them, and a file of what was measured.

#![allow(dead_code, reason = "every benchmark uses a part")]

pub mod model;
pub mod saved;

use asft::ops::allocator::{self, Allocator};
use asft::ops::machine::{best, copy_rate, gemm_rate};
use candle_core::{Device, Tensor};
use serde_json::json;

/// The program's.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Runs a benchmark inside the thread pool, as commands run; with `--save DIR`, what it measured is written there.
pub fn in_pool(run: impl FnOnce() -> anyhow::Result<()> + Send) -> anyhow::Result<()> {
    allocator::keep_freed_buffers();
    let dir = saved::folder()?;
    rayon::scope(|_| run())?;
    dir.map_or(Ok(()), |dir| saved::write(&dir))
}

/// Measured once, before anything else runs.
pub struct Limits {
    /// f32 GEMM, operations per second.
    pub gemm: f64,
    /// Copy, bytes read and written per second.
    pub copy: f64,
}

impl Limits {
    pub fn measure() -> Self {
        let limits = Self { gemm: gemm_rate(1024, 1024, 1024), copy: copy_rate() };
        println!(
            "limits: GEMM {:.0} GFLOP/s, copy {:.1} GB/s, {} threads\n",
            limits.gemm / 1e9,
            limits.copy / 1e9,
            rayon::current_num_threads()
        );
        saved::limits(&limits);
        limits
    }

    /// Prints the time of `run` for work that the GEMM rate bounds, and returns its seconds.
    pub fn flops(&self, name: &str, flops: f64, run: impl FnMut()) -> f64 {
        let seconds = best(run);
        println!("{name:<44} {:>9.3} ms {}", seconds * 1e3, self.share(flops, seconds));
        saved::row(json!({"name": name, "seconds": seconds, "flops": flops}));
        seconds
    }

    /// The rate of these operations, and its share of the GEMM rate.
    pub fn share(&self, flops: f64, seconds: f64) -> String {
        let rate = flops / seconds;
        format!("{:>8.1} GFLOP/s {:>5.0} %", rate / 1e9, 100.0 * rate / self.gemm)
    }

    /// Prints the time of `run` for work that the copy rate bounds; `values`: f32 values read and written.
    pub fn bytes(&self, name: &str, values: usize, run: impl FnMut()) {
        let seconds = best(run);
        let rate = 4.0 * values as f64 / seconds;
        println!(
            "{name:<44} {:>9.3} ms {:>8.1} GB/s    {:>5.0} %",
            seconds * 1e3,
            rate / 1e9,
            100.0 * rate / self.copy
        );
        saved::row(json!({"name": name, "seconds": seconds, "bytes": 4 * values}));
    }
}

/// Values in about (-1, 1), the same on every run.
pub fn tensor(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).expect("as many values as the shape has")
}

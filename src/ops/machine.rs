//! What this machine's CPU can do: the limits that estimates and benchmarks are compared with, measured on the spot.

#![allow(unsafe_code, reason = "times a matrix product")]

use super::gemm::product_in_parts;
use super::matrix::Matrix;
use rayon::prelude::*;
use std::time::Instant;

/// Values in a copy: far more than any cache holds.
const COPY_ELEMENTS: usize = 1 << 25;
const CHUNK: usize = 1 << 16;

/// Floating-point operations per second of an m × k by k × n product in f32 on every thread; the best of several runs.
pub fn gemm_rate(m: usize, k: usize, n: usize) -> f64 {
    let (a, b, mut out) = (vec![0.5f32; m * k], vec![0.25f32; k * n], vec![0f32; m * n]);
    let flops = 2.0 * (m * k * n) as f64;
    flops
        / best(|| {
            let (a, b, out) = (Matrix::read(&a, 0, k), Matrix::read(&b, 0, n), Matrix::write(&mut out, n));
            // SAFETY: whole matrices of these sizes, not shared.
            unsafe { product_in_parts((m, n, k), a, b, out, false) };
        })
}

/// Bytes per second of a copy on every thread, reads and writes both counted; the best of several runs.
pub fn copy_rate() -> f64 {
    let (from, mut to) = (vec![1f32; COPY_ELEMENTS], vec![0f32; COPY_ELEMENTS]);
    let bytes = 2.0 * (COPY_ELEMENTS * size_of::<f32>()) as f64;
    bytes
        / best(|| {
            to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| to.copy_from_slice(from));
        })
}

/// Shortest time in seconds, over at least three runs and a quarter of a second.
pub fn best(mut run: impl FnMut()) -> f64 {
    run();
    let (began, mut shortest, mut runs) = (Instant::now(), f64::INFINITY, 0);
    while runs < 3 || began.elapsed().as_secs_f64() < 0.25 {
        let start = Instant::now();
        run();
        shortest = shortest.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    shortest
}

#![allow(unsafe_code, reason = "calls the kernels as their callers do")]

use super::*;

#[test]
fn a_few_rows_are_dot_products() {
    let (rows, cols) = (3 * TASK_ROWS + 5, 131);
    let w: Vec<f32> = (0..rows * cols).map(|i| (i % 11) as f32 - 5.0).collect();
    let half: Vec<half::bf16> = w.iter().map(|x| half::bf16::from_f32(*x)).collect();
    for m in 1..=FEW_ROWS + 1 {
        let a: Vec<f32> = (0..m * cols).map(|i| (i % 5) as f32 - 2.0).collect();
        let mut expected = vec![0f32; m * rows];
        let (lhs, rhs) = (Matrix::read(&a, 0, cols), Matrix::read(&w, 0, cols));
        // SAFETY: whole matrices of these sizes.
        unsafe {
            let out = Matrix::write(&mut expected, rows);
            product((m, rows, cols), lhs, rhs.t(), out, 1.0, false, Parallelism::None);
        };
        for values in [Values::F32(&w), Values::Bf16(&half)] {
            let mut out = vec![0f32; m * rows];
            let weight = Stored { values, rows, cols, transposed: true };
            // SAFETY: as above.
            unsafe { product_with(m, lhs, weight, Matrix::write(&mut out, rows), false) };
            // Small whole numbers: every sum is exact.
            assert_eq!(out, expected);
        }
    }
}

#[test]
fn no_rows_are_not_read() {
    let w = [1f32; 6];
    let weight = Stored { values: Values::F32(&w), rows: 2, cols: 3, transposed: true };
    let (none, out) = (Matrix::read(&[], 0, 3), Matrix::write(&mut [], 2));
    // SAFETY: an empty a and an empty out of no rows.
    unsafe { few_rows(0, none, &[(weight, out)]) };
}

#[test]
fn half_weights_over_several_blocks() {
    let (m, rows, cols) = (3, 2 * BLOCK_ELEMENTS / 1000 + 77, 1000);
    let half: Vec<half::bf16> = (0..rows * cols).map(|i| half::bf16::from_f32((i % 13) as f32 - 6.0)).collect();
    let wide: Vec<f32> = half.iter().map(|x| x.to_f32()).collect();
    for transposed in [true, false] {
        let (k, n) = if transposed { (cols, rows) } else { (rows, cols) };
        let a: Vec<f32> = (0..m * k).map(|i| (i % 7) as f32 - 3.0).collect();
        let run = |values| {
            let mut out = vec![1f32; m * n];
            let w = Stored { values, rows, cols, transposed };
            // SAFETY: whole matrices of these sizes.
            unsafe { product_with(m, Matrix::read(&a, 0, k), w, Matrix::write(&mut out, n), true) };
            out
        };
        // Small whole numbers: every sum is exact.
        assert_eq!(run(Values::Bf16(&half)), run(Values::F32(&wide)));
    }
}

/// On one thread and on several, which split it differently: the same bits, whatever the strides.
#[test]
fn parallelism_does_not_change_a_bit() {
    for (m, n, k) in
        [(300, 700, 520), (1, 900, 1100), (900, 3, 1100), (410, 40, 300), (97, 97, 97), (5, 2000, 1030), (4, 500, 300)]
    {
        let values = |count: usize, step: usize| -> Vec<f32> {
            (0..count).map(|i| ((i * step) % 1009) as f32 / 504.5 - 1.0).collect()
        };
        let (a, b) = (values(m * k, 37), values(k * n, 91));
        for (a_turned, b_turned) in [(false, true), (false, false), (true, false), (true, true)] {
            let run = |threads: usize| {
                let mut out = vec![0.5f32; m * n];
                let read = |x: &[f32], turned, rows: usize, columns: usize| {
                    if turned { Matrix::read(x, 0, rows).t() } else { Matrix::read(x, 0, columns) }
                };
                let (a, b) = (read(&a, a_turned, m, k), read(&b, b_turned, k, n));
                let to = Matrix::write(&mut out, n);
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                // SAFETY: whole matrices of these sizes.
                pool.install(|| unsafe { product_in_parts((m, n, k), a, b, to, true) });
                out
            };
            let whole = run(1);
            let same = [2, 3, 16].into_iter().all(|threads| run(threads) == whole);
            assert!(same, "{m} {n} {k}, turned {a_turned} {b_turned}");
        }
    }
}

#[test]
fn strides_transposes_and_accumulation() {
    // a = [[1, 2], [3, 4]] inside rows of 3; b = its transpose; out starts at one.
    let a = [1.0, 2.0, 9.0, 3.0, 4.0, 9.0];
    let mut out = [1.0f32; 4];
    let lhs = Matrix::read(&a, 0, 3);
    // SAFETY: 2 × 2 views inside `a` and `out`, which is not shared.
    unsafe { product((2, 2, 2), lhs, lhs.t(), Matrix::write(&mut out, 2), 2.0, true, Parallelism::None) };
    assert_eq!(out, [11.0, 23.0, 23.0, 51.0]);
}

#[test]
#[should_panic(expected = "larger than memory")]
fn a_matrix_that_no_memory_holds_is_not_begun() {
    // 2⁶⁴ values, which overflow to 0 as a product of two lengths.
    Matrix::fresh(1 << 33, 1 << 31);
}

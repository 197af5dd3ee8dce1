#![allow(unsafe_code, reason = "calls the kernels as their callers do")]

use super::*;
use half::bf16;

/// Small whole numbers, whose sums are exact in any order, inside rows that are longer by `gap`, except the last, so
/// that a sanitizer sees a read one value too far.
fn whole_numbers(rows: usize, columns: usize, gap: usize, seed: usize) -> Vec<f32> {
    (0..rows * (columns + gap) - gap).map(|i| ((i * 7 + i / 5 + seed) % 9) as f32 - 4.0).collect()
}

/// A matrix that is read by rows, or by columns if it is `turned`.
fn matrix(values: &[f32], rows: usize, columns: usize, gap: usize, turned: bool) -> Matrix {
    if turned { Matrix::read(values, 0, rows + gap).t() } else { Matrix::read(values, 0, columns + gap) }
}

/// Tails of every vector length, one row more than a task or a turn, padded and whole blocks; with gaps between rows.
#[test]
fn products_are_those_of_the_definition() {
    let sides = [17, 48, 65, 130, 401];
    let mut served = 0;
    for thin in [1, 3, 8, 11, 16] {
        for (m, k) in sides.into_iter().flat_map(|m| sides.map(|k| (m, k))) {
            for (m, n, k) in [(m, thin, k), (m, k, thin)] {
                for (turned, gap, add) in [(0, 0, false), (1, 0, true), (2, 3, false), (3, 1, false), (0, 2, true)] {
                    let (a_turned, b_turned) = (turned & 1 == 1, turned & 2 == 2);
                    let sizes = |turned, rows, columns| if turned { (columns, rows) } else { (rows, columns) };
                    let ((ar, ac), (br, bc)) = (sizes(a_turned, m, k), sizes(b_turned, k, n));
                    let (a, b) = (whole_numbers(ar, ac, gap, 1), whole_numbers(br, bc, gap, 2));
                    let (a, b) = (matrix(&a, m, k, gap, a_turned), matrix(&b, k, n, gap, b_turned));
                    let mut out = vec![1f32; m * (n + gap) - gap];
                    // SAFETY: matrices of these sizes.
                    let done = unsafe { product((m, n, k), a, b, Matrix::write(&mut out, n + gap), add) };
                    served += usize::from(done);
                    for (i, row) in out.chunks(n + gap).enumerate().filter(|_| done) {
                        assert!(row[n..].iter().all(|x| *x == 1.0), "a gap was written");
                        for (j, value) in row[..n].iter().enumerate() {
                            // SAFETY: elements of these matrices.
                            let term = |l| unsafe { a.value(i, l) * b.value(l, j) };
                            let expected = f32::from(u8::from(add)) + (0..k).map(term).sum::<f32>();
                            assert_eq!(*value, expected, "{m} {n} {k}, {turned} {gap} {add}, at {i} {j}");
                        }
                    }
                }
            }
        }
    }
    assert_eq!(served, 5 * 25 * (3 + 5));
}

/// The same of a few rows by those of a weight.
#[test]
fn products_by_rows_are_those_of_the_definition() {
    for m in [1, 5, 8, 13, 32] {
        for (n, k, gap) in [(17, 401, 0), (48, 17, 1), (65, 130, 3), (4001, 65, 2)] {
            let (x, w) = (whole_numbers(m, k, gap, 1), whole_numbers(n, k, 0, 2));
            let half: Vec<bf16> = w.iter().map(|x| bf16::from_f32(*x)).collect();
            let x = matrix(&x, m, k, gap, false);
            for values in [Values::F32(&w), Values::Bf16(&half)] {
                let mut out = vec![1f32; m * (n + gap) - gap];
                // SAFETY: matrices of these sizes.
                assert!(unsafe { by_rows((m, n, k), x, values, Matrix::write(&mut out, n + gap)) });
                for (i, row) in out.chunks(n + gap).enumerate() {
                    assert!(row[n..].iter().all(|x| *x == 1.0), "a gap was written");
                    for (j, value) in row[..n].iter().enumerate() {
                        // SAFETY: elements of this matrix.
                        let term = |l| unsafe { x.value(i, l) } * w[j * k + l];
                        assert_eq!(*value, (0..k).map(term).sum::<f32>(), "{m} {n} {k}, at {i} {j}");
                    }
                }
            }
        }
    }
}

#[test]
fn other_products_are_left_to_a_gemm() {
    let (a, mut out) = (vec![1f32; 100 * 100], vec![7f32; 100 * 100]);
    for (m, n, k) in [(16, 100, 8), (100, 17, 17), (100, 16, 16), (100, 8, 0), (100, 0, 100), (0, 8, 100)] {
        let (a, out) = (Matrix::read(&a, 0, 100), Matrix::write(&mut out, 100));
        // SAFETY: parts of matrices of 100 × 100.
        assert!(unsafe { !product((m, n, k), a, a, out, false) }, "{m} {n} {k}");
    }
    // Many rows, few sums, short ones, and more of x than a cache holds.
    for (m, n, k) in [(33, 100, 100), (8, 16, 100), (8, 100, 16), (8, 100, 40_000)] {
        let (x, out) = (Matrix::read(&a, 0, 100), Matrix::write(&mut out, 100));
        // SAFETY: nothing is read.
        assert!(unsafe { !by_rows((m, n, k), x, Values::F32(&a), out) }, "{m} {n} {k}");
    }
    assert!(out.iter().all(|x| *x == 7.0));
}

#[test]
fn parallelism_does_not_change_a_bit() {
    let values: Vec<f32> = (0..1100 * 600).map(|i| (i as f32 * 0.37).sin()).collect();
    for (m, n, k, turned) in [(1100, 8, 600, false), (600, 11, 1100, true), (1100, 600, 8, false)] {
        let run = |threads: usize| {
            let mut out = vec![0f32; m * n];
            let a = matrix(&values, m, k, 0, turned);
            let (b, to) = (Matrix::read(&values, 5, n), Matrix::write(&mut out, n));
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            // SAFETY: matrices of these sizes.
            assert!(pool.install(|| unsafe { product((m, n, k), a, b, to, false) }));
            out
        };
        let one = run(1);
        assert!([2, 5].into_iter().all(|threads| run(threads) == one), "{m} {n} {k}");
    }
}

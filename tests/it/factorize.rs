//! Truncated factors of C = V Vᵀ / ‖V‖_F against a naive full decomposition in f64.

use asft::method::spectral::{Direction, Keep, Setting, factorize};
use candle_core::Tensor;
use faer::{Mat, Par, Side};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A row-major V [d_out, d_in] whose i-th of `rank` random directions has strength i^-`decay`, plus noise.
fn random_v(d_out: usize, d_in: usize, rank: usize, decay: f64, noise: f64, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = |rows, columns| Mat::<f64>::from_fn(rows, columns, |_, _| random.random_range(-1.0..1.0));
    let mut left = uniform(d_out, rank);
    let right = uniform(rank, d_in);
    for j in 0..rank {
        for i in 0..d_out {
            left[(i, j)] *= (j as f64 + 1.0).powf(-decay) * 0.02;
        }
    }
    let v = &left * &right + faer::Scale(noise) * uniform(d_out, d_in);
    (0..d_out * d_in).map(|i| v[(i / d_in, i % d_in)] as f32).collect()
}

fn matrix(values: &[f32], rows: usize, columns: usize) -> Mat<f64> {
    Mat::from_fn(rows, columns, |i, j| f64::from(values[i * columns + j]))
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

struct Truth {
    c: Mat<f64>,
    eigenvalues: Vec<f64>,
    norm: f64,
}

fn truth(v: &[f32], d_out: usize, d_in: usize) -> Truth {
    let v = matrix(v, d_out, d_in);
    let norm = v.norm_l2();
    let c = faer::Scale(norm.recip()) * &v * v.transpose();
    let mut eigenvalues = c.self_adjoint_eigenvalues(Side::Lower).unwrap();
    eigenvalues.reverse();
    Truth { c, eigenvalues, norm }
}

fn compute(v: &[f32], d_out: usize, d_in: usize, keep: Keep) -> Direction {
    compute_within(v, d_out, d_in, keep, usize::MAX)
}

fn compute_within(v: &[f32], d_out: usize, d_in: usize, keep: Keep, memory: usize) -> Direction {
    let setting = Setting { keep, memory, par: Par::Seq };
    factorize(&|| Ok(v.to_vec()), (d_out, d_in), &setting).unwrap().0
}

/// The true ‖C − U diag(c) Uᵀ‖₂.
fn true_residual(found: &Direction, truth: &Truth) -> f64 {
    let k = found.rank();
    let u = matrix(&values(&found.basis), found.shape.0, k);
    let scaled = Mat::from_fn(found.shape.0, k, |i, j| u[(i, j)] * f64::from(found.eigenvalues[j]));
    let r = &truth.c - &scaled * u.transpose();
    r.self_adjoint_eigenvalues(Side::Lower).unwrap().iter().fold(0.0, |most, x| most.max(x.abs()))
}

fn check(found: &Direction, v: &[f32], what: &str) -> f64 {
    let ((d_out, d_in), k) = (found.shape, found.rank());
    let truth = truth(v, d_out, d_in);
    assert!((f64::from(found.v_norm) / truth.norm - 1.0).abs() < 1e-6, "{what}");
    let u = matrix(&values(&found.basis), d_out, k);
    let gram = u.transpose() * &u;
    for i in 0..k {
        for j in 0..k {
            let off = (gram[(i, j)] - f64::from(u8::from(i == j))).abs();
            assert!(off <= 1e-5, "{what}: orthonormality off by {off:.1e}");
        }
        let off = (f64::from(found.eigenvalues[i]) - truth.eigenvalues[i]).abs();
        assert!(off <= 1e-6 * truth.eigenvalues[0], "{what}: eigenvalue {i} off by {off:.1e}");
    }
    assert!(found.eigenvalues.windows(2).all(|pair| pair[0] >= pair[1]), "{what}");
    let residual = true_residual(found, &truth);
    let stored = f64::from(found.residual);
    assert!(stored >= residual, "{what}: residual {stored:.3e} does not bound {residual:.3e}");
    if k > 0 {
        let right = matrix(&values(found.right().unwrap()), d_in, k);
        let sigma = |j: usize| (f64::from(found.eigenvalues[j]) * truth.norm).sqrt();
        let back = Mat::from_fn(d_out, k, |i, j| u[(i, j)] * sigma(j)) * right.transpose();
        let rest = (&u * (u.transpose() * matrix(v, d_out, d_in)) - back).norm_l2();
        assert!(rest <= 1e-5 * truth.norm, "{what}: right basis off by {rest:.1e}");
    }
    residual
}

#[test]
fn a_tolerance_is_met_with_the_fewest_directions() {
    for (seed, (d_out, d_in)) in [(60, 60), (40, 150), (150, 40), (300, 300), (200, 330), (330, 200)].iter().enumerate()
    {
        for (decay, noise) in [(1.0, 1e-4), (0.3, 1e-3), (2.0, 0.0)] {
            let v = random_v(*d_out, *d_in, 30, decay, noise, seed as u64);
            for tolerance in [1e-1, 1e-3] {
                let what = format!("[{d_out}, {d_in}] decay {decay} tolerance {tolerance}");
                let found = compute(&v, *d_out, *d_in, Keep::Tolerance(tolerance));
                let residual = check(&found, &v, &what);
                let goal = tolerance * f64::from(found.eigenvalues[0]);
                assert!(f64::from(found.residual) <= goal, "{what}: {} > {goal}", found.residual);
                let all = truth(&v, *d_out, *d_in).eigenvalues;
                let fewest = all.iter().filter(|c| **c > goal).count();
                let with_margin = all.iter().filter(|c| **c > 0.97 * goal).count();
                assert!((fewest..=with_margin).contains(&found.rank()), "{what}: {} of {fewest}", found.rank());
                assert!(f64::from(found.residual) <= 1.2 * residual + 1e-5 * goal, "{what}: a loose bound");
            }
        }
    }
}

#[test]
fn tolerance_zero_keeps_the_full_rank() {
    for (d_out, d_in) in [(50, 50), (30, 90), (90, 30), (250, 200), (200, 250)] {
        let v = random_v(d_out, d_in, 20, 0.5, 1e-2, 7);
        for memory in [usize::MAX, 0] {
            let found = compute_within(&v, d_out, d_in, Keep::Tolerance(0.0), memory);
            assert_eq!(found.rank(), d_out.min(d_in), "[{d_out}, {d_in}]");
            check(&found, &v, &format!("[{d_out}, {d_in}] full"));
            let share = found.residual / found.eigenvalues[0];
            assert!(share <= 1e-5, "[{d_out}, {d_in}] memory {memory}: residual {share:.1e} of c_1");
        }
    }
}

#[test]
fn a_rank_is_kept_or_the_whole_of_a_lower_one() {
    for (d_out, d_in) in [(64, 48), (48, 64), (300, 280), (280, 300)] {
        let v = random_v(d_out, d_in, 6, 0.5, 0.0, 11);
        for (rank, expected) in [(0, 0), (3, 3), (6, 6), (10, 6), (1000, 6)] {
            let found = compute(&v, d_out, d_in, Keep::Rank(rank));
            assert_eq!(found.rank(), expected, "[{d_out}, {d_in}] rank {rank}");
            check(&found, &v, &format!("[{d_out}, {d_in}] rank {rank}"));
        }
    }
}

#[test]
fn equal_singular_values_are_all_found() {
    // V = a scaled identity: every eigenvalue of C is the same, which a Krylov method alone would miss.
    let n = 400;
    let mut v = vec![0f32; n * n];
    for i in 0..n {
        v[i * n + i] = if i < 12 { 0.5 } else { 1e-3 };
    }
    let found = compute(&v, n, n, Keep::Tolerance(1e-3));
    assert_eq!(found.rank(), 12);
    check(&found, &v, "scaled identity");
}

#[test]
fn no_difference_has_no_directions() {
    let found = compute(&[0.0; 12], 3, 4, Keep::Tolerance(1e-3));
    assert_eq!((found.shape, found.rank(), found.v_norm, found.residual), ((3, 4), 0, 0.0, 0.0));
    assert_eq!((found.basis.dims(), found.right().unwrap().dims()), (&[3, 0][..], &[4, 0][..]));
}

#[test]
fn one_row_and_one_column_work() {
    for (d_out, d_in) in [(1, 5), (5, 1), (1, 1), (2, 2)] {
        let v = random_v(d_out, d_in, 1, 0.0, 0.1, 3);
        check(&compute(&v, d_out, d_in, Keep::Tolerance(0.0)), &v, "thin");
    }
}

#[test]
fn the_residual_bounds_the_truth_for_many_random_matrices() {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    for seed in 0..150 {
        let (d_out, d_in) = (random.random_range(1..80), random.random_range(1..80));
        let rank = random.random_range(1..=d_out.min(d_in));
        let v = random_v(d_out, d_in, rank, random.random_range(0.0..3.0), random.random_range(0.0..0.01), seed);
        let keep = match seed % 3 {
            0 => Keep::Rank(random.random_range(1..20)),
            1 => Keep::Tolerance(0.0),
            _ => Keep::Tolerance(10f64.powf(random.random_range(-6.0..-0.5))),
        };
        check(&compute(&v, d_out, d_in, keep), &v, &format!("seed {seed} [{d_out}, {d_in}] {keep:?}"));
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let v = random_v(180, 260, 30, 0.7, 1e-3, 1);
    for keep in [Keep::Tolerance(1e-2), Keep::Tolerance(0.0), Keep::Rank(5)] {
        let run = || {
            let found = compute(&v, 180, 260, keep);
            (values(&found.basis), values(found.right().unwrap()), found.eigenvalues, found.v_norm, found.residual)
        };
        assert_eq!(run(), run());
    }
}

//! The closed-form penalty against the literal formula in f64: goldens made with PyTorch (see
//! `tests/fixtures/make/penalty.py`) and a naive version here.

use crate::support::files::{fixture, read_json};
use crate::support::tensors::{norm, relative_error, to_vec};
use asft::method::shares::Products;
use asft::method::{AsftOptions, Direction, Keep, Operator, Penalize, Penalty, Projector, random_direction};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use std::collections::HashMap;

const TOLERANCE: f64 = 1e-5;

/// All of V's direction.
fn direction(v: &Tensor) -> Direction {
    Direction::of(v, Keep::Tolerance(0.0)).unwrap()
}

fn scalar(x: &Tensor) -> f64 {
    to_vec(x)[0]
}

fn assert_near(what: &str, got: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    let relative = relative_error(&to_vec(got), &to_vec(expected));
    assert!(relative <= TOLERANCE, "{what}: relative error {relative:.2e}");
    relative
}

fn assert_value(what: &str, got: f64, expected: f64) -> f64 {
    let relative = if got == expected { 0.0 } else { (got - expected).abs() / expected.abs() };
    assert!(relative <= TOLERANCE, "{what}: {got} instead of {expected}");
    relative
}

fn options(case: &Value, index: &Value) -> AsftOptions {
    let (projector, rank, energy) = match case["projector"].as_str().unwrap() {
        "released" => (Projector::Released, None, None),
        "equation" => (Projector::Equation, None, None),
        "subspace_rank" => (Projector::Subspace, index["rank"].as_u64().map(|rank| rank as usize), None),
        "subspace_energy" => (Projector::Subspace, None, index["energy"].as_f64()),
        other => panic!("projector {other}"),
    };
    AsftOptions {
        lambda: index["lambda"].as_f64().unwrap().into(),
        penalize: serde_json::from_value(case["penalize"].clone()).unwrap(),
        projector,
        subspace_rank: rank,
        subspace_energy: energy,
        input_mix: case.get("input_mix").and_then(Value::as_f64).unwrap_or(0.0),
        scaled: case["scaled"].as_bool().unwrap(),
        ..Default::default()
    }
}

#[test]
fn every_golden_is_met() {
    let folder = fixture("penalty");
    let index = read_json(&folder.join("index.json"));
    let goldens = candle_core::safetensors::load(folder.join("penalty.safetensors"), &Device::Cpu).unwrap();
    let scale = index["alpha"].as_f64().unwrap() / index["r"].as_f64().unwrap();
    let mut worst = 0f64;
    let cases = index["cases"].as_array().unwrap();
    assert!(cases.len() >= 130, "only {} cases", cases.len());
    let mut directions: HashMap<&str, Direction> = HashMap::new();
    for case in cases {
        let (key, module) = (case["key"].as_str().unwrap(), case["module"].as_str().unwrap());
        let golden = |suffix: &str| &goldens[&format!("{key}.{suffix}")];
        let input = |name: &str| &goldens[&format!("{module}.{name}")];
        let options = options(case, &index);
        let penalty = Penalty::new(&options).unwrap();
        let direction = directions.entry(module).or_insert_with(|| direction(input("V")));
        let operator = Operator::new(&options, direction, &Device::Cpu).unwrap();
        if options.projector == Projector::Subspace {
            let which = if options.subspace_rank.is_some() { "k_by_rank" } else { "k_by_energy" };
            assert_eq!(operator.rank() as u64, index["modules"][module][which].as_u64().unwrap(), "{key}");
        }
        if case["form"] == "lora" {
            let term = penalty.lora(Some(&operator), input("A"), input("B"), scale).unwrap();
            worst = worst.max(assert_value(key, term.value.read().unwrap(), scalar(golden("value"))));
            worst = worst.max(assert_near(key, &term.grad_a, golden("grad_A")));
            worst = worst.max(assert_near(key, &term.grad_b, golden("grad_B")));
        } else {
            let term = penalty.full(Some(&operator), input("delta")).unwrap();
            worst = worst.max(assert_value(key, term.value.read().unwrap(), scalar(golden("value"))));
            worst = worst.max(assert_near(key, &term.grad, golden("grad")));
        }
    }
    println!("{} cases, worst relative error {worst:.1e}", cases.len());
}

#[test]
fn the_equation_of_a_full_rank_is_refused() {
    let options = AsftOptions { projector: Projector::Equation, ..Default::default() };
    let operator = |d_out, d_in| {
        let v = Tensor::randn(0f32, 1.0, (d_out, d_in), &Device::Cpu).unwrap();
        Operator::new(&options, &direction(&v), &Device::Cpu)
    };
    assert_eq!(operator(9, 6).unwrap().rank(), 6);
    let error = operator(6, 9).unwrap_err();
    assert!(error.to_string().contains("V has full rank (6 of 6)") && error.to_string().contains("is the identity"));
    assert_eq!(asft::error::exit_code(&error), 2);
}

/// λ ‖M s B A‖_F² and its gradients in f64, with every matrix formed.
fn literal(m: &Tensor, a: &Tensor, b: &Tensor, weight: f64) -> (f64, Tensor, Tensor) {
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
    let (a, b) = (wide(a), wide(b));
    let delta = b.matmul(&a).unwrap();
    let kept = m.matmul(&delta).unwrap();
    let by_delta = (m.t().unwrap().matmul(&kept).unwrap() * (2.0 * weight)).unwrap();
    let grad_a = b.t().unwrap().matmul(&by_delta).unwrap();
    let grad_b = by_delta.matmul(&a.t().unwrap()).unwrap();
    (weight * norm(&kept).powi(2), grad_a, grad_b)
}

#[test]
fn larger_layers_meet_the_literal_formula() {
    let device = Device::Cpu;
    // The largest c is about 0.08, and about 0.8.
    let layers = [((96, 160, 8), 0.02), ((160, 96, 16), 0.02), ((128, 128, 1), 0.02), ((96, 160, 8), 0.2)];
    for ((d_out, d_in, r), spread) in layers {
        let random =
            |rows, columns, scale: f64| (Tensor::randn(0f32, 1.0, (rows, columns), &device).unwrap() * scale).unwrap();
        let v = random(d_out, d_in, spread);
        let (a, b) = (random(r, d_in, 0.1), random(d_out, r, 0.05));
        let direction = direction(&v);
        let wide = v.to_dtype(DType::F64).unwrap();
        let c = (wide.matmul(&wide.t().unwrap()).unwrap() / norm(&wide)).unwrap();
        let eye = Tensor::eye(d_out, DType::F64, &device).unwrap();
        for (penalize, m) in [
            (Penalize::Orthogonal, (&eye - &c).unwrap()),
            (Penalize::Aligned, c.clone()),
            (Penalize::All, eye.clone()),
            (Penalize::None, (&eye * 0.0).unwrap()),
        ] {
            for scaled in [false, true] {
                let options = AsftOptions { lambda: 1.3.into(), penalize, scaled, ..Default::default() };
                let operator = Operator::new(&options, &direction, &device).unwrap();
                let term = Penalty::new(&options).unwrap().lora(Some(&operator), &a, &b, 4.0).unwrap();
                let weight = 1.3 * if scaled { 16.0 } else { 1.0 };
                let (value, grad_a, grad_b) = literal(&m, &a, &b, weight);
                let what = format!("{penalize:?} scaled {scaled} [{d_out}, {d_in}]");
                assert_value(&what, term.value.read().unwrap(), value);
                assert_near(&what, &term.grad_a, &grad_a);
                assert_near(&what, &term.grad_b, &grad_b);
            }
            let options = AsftOptions { lambda: 1.3.into(), penalize, ..Default::default() };
            let operator = Operator::new(&options, &direction, &device).unwrap();
            let delta = b.matmul(&a).unwrap();
            let term = Penalty::new(&options).unwrap().full(Some(&operator), &delta).unwrap();
            let kept = m.matmul(&delta.to_dtype(DType::F64).unwrap()).unwrap();
            let what = format!("full, {penalize:?} [{d_out}, {d_in}]");
            assert_value(&what, term.value.read().unwrap(), 1.3 * norm(&kept).powi(2));
            assert_near(&what, &term.grad, &(m.matmul(&kept).unwrap() * 2.6).unwrap());
        }
    }
}

#[test]
fn a_cancelling_product_keeps_its_digits() {
    // B's columns are nearly opposite and A's rows nearly equal: B A is a thousandth of what its operator suggest.
    let device = Device::Cpu;
    let column = Tensor::randn(0f32, 1.0, (64, 1), &device).unwrap();
    let row = Tensor::randn(0f32, 1.0, (1, 80), &device).unwrap();
    let small = |rows, columns| (Tensor::randn(0f32, 1.0, (rows, columns), &device).unwrap() * 1e-3).unwrap();
    let b = (Tensor::cat(&[&column, &column.neg().unwrap()], 1).unwrap() + small(64, 2)).unwrap();
    let a = (Tensor::cat(&[&row, &row], 0).unwrap() + small(2, 80)).unwrap();
    let options = AsftOptions { penalize: Penalize::All, ..Default::default() };
    let term = Penalty::new(&options).unwrap().lora(None, &a, &b, 1.0).unwrap();
    let eye = Tensor::eye(64, DType::F64, &device).unwrap();
    let (value, grad_a, grad_b) = literal(&eye, &a, &b, 1.0);
    assert_value("value", term.value.read().unwrap(), value);
    assert_near("grad_a", &term.grad_a, &grad_a);
    assert_near("grad_b", &term.grad_b, &grad_b);
}

#[test]
fn a_file_truncated_too_far_for_the_subspace_is_refused() {
    let device = Device::Cpu;
    let direction = Direction {
        shape: (2, 2),
        basis: Tensor::new(&[[1f32], [0.0]], &device).unwrap(),
        right: None,
        eigenvalues: vec![0.5],
        v_norm: 1.0,
        residual: 0.4,
    };
    for (rank, energy) in [(Some(2), None), (None, Some(0.9)), (None, None)] {
        let options = AsftOptions {
            projector: Projector::Subspace,
            subspace_rank: rank,
            subspace_energy: energy,
            ..Default::default()
        };
        let error = Operator::new(&options, &direction, &device).unwrap_err();
        assert_eq!(asft::error::exit_code(&error), 2);
    }
}

fn random(rows: usize, columns: usize, scale: f64) -> Tensor {
    (Tensor::randn(0f32, 1.0, (rows, columns), &Device::Cpu).unwrap() * scale).unwrap()
}

fn wide(x: &Tensor) -> Tensor {
    x.to_dtype(DType::F64).unwrap()
}

/// ⟨x, y⟩ in f64.
fn inner(x: &Tensor, y: &Tensor) -> f64 {
    scalar(&(wide(x) * wide(y)).unwrap().sum_all().unwrap())
}

/// Value and gradient with respect to ΔW (f64) of weight · (‖(I − C) ΔW‖² + min(0, ⟨ΔW, V⟩ / ‖V‖)²), with every matrix
/// formed.
fn literal_signed(v: &Tensor, delta: &Tensor, weight: f64) -> (f64, Tensor) {
    let (v, delta) = (wide(v), wide(delta));
    let c = (v.matmul(&v.t().unwrap()).unwrap() / norm(&v)).unwrap();
    let kept = (&delta - c.matmul(&delta).unwrap()).unwrap();
    let by_delta = (&kept - c.matmul(&kept).unwrap()).unwrap();
    let along = (inner(&delta, &v) / norm(&v)).min(0.0);
    let by_sign = (&v * (along / norm(&v))).unwrap();
    let gradient = ((by_delta + by_sign).unwrap() * (2.0 * weight)).unwrap();
    (weight * (norm(&kept).powi(2) + along * along), gradient)
}

#[test]
fn what_moves_against_v_is_penalised_and_what_follows_it_is_not() {
    let device = Device::Cpu;
    for (d_out, d_in, r) in [(40, 72, 4), (72, 40, 8), (48, 64, 1)] {
        let v = random(d_out, d_in, 0.02);
        let direction = direction(&v);
        let (a, b) = (random(r, d_in, 0.1), random(d_out, r, 0.05));
        let along = v.matmul(&a.t().unwrap()).unwrap();
        let along = (&along * (norm(&b) / norm(&along))).unwrap();
        for (turn, scaled) in [(1.0, false), (-1.0, false), (-1.0, true)] {
            let options =
                AsftOptions { lambda: 1.3.into(), penalize: Penalize::OrthogonalReverse, scaled, ..Default::default() };
            let penalty = Penalty::new(&options).unwrap();
            let operator = Operator::new(&options, &direction, &device).unwrap();
            // Well with V for turn = 1, well against it for −1: ⟨V Aᵀ A, V⟩ is positive.
            let b = (&b + (&along * (2.0 * turn)).unwrap()).unwrap();
            let delta = b.matmul(&a).unwrap();
            let term = penalty.lora(Some(&operator), &a, &b, 4.0).unwrap();
            let weight = 1.3 * if scaled { 16.0 } else { 1.0 };
            let (value, by_delta) = literal_signed(&v, &wide(&b).matmul(&wide(&a)).unwrap(), weight);
            let what = format!("[{d_out}, {d_in}] {turn} {scaled}");
            assert_value(&what, term.value.read().unwrap(), value);
            assert_near(&what, &term.grad_a, &wide(&b).t().unwrap().matmul(&by_delta).unwrap());
            assert_near(&what, &term.grad_b, &by_delta.matmul(&wide(&a).t().unwrap()).unwrap());
            let plain = AsftOptions { penalize: Penalize::Orthogonal, ..options.clone() };
            let plain = Penalty::new(&plain).unwrap().lora(Some(&operator), &a, &b, 4.0).unwrap();
            let [with, without] = [&term, &plain].map(|term| term.value.read().unwrap());
            assert_eq!(with > without, turn < 0.0, "{what}");
            if !scaled {
                let full = penalty.full(Some(&operator), &delta).unwrap();
                assert_value(&what, full.value.read().unwrap(), value);
                assert_near(&what, &full.grad, &by_delta);
            }
            let shares = Products::lora(Some(&direction), &a, &b, 1.0).unwrap();
            let signed = |shares: &Products| shares.signed(&direction).unwrap();
            let cosine = inner(&delta, &v) / norm(&delta) / norm(&v);
            assert!((signed(&shares) - cosine).abs() < 1e-6 && cosine * turn > 0.0, "{what}: {shares:?}");
            let full = Products::full(Some(&direction), &delta).unwrap();
            for (one, other) in [
                (shares.norm(), norm(&delta)),
                (full.norm(), shares.norm()),
                (full.aligned().unwrap(), shares.aligned().unwrap()),
                (full.orthogonal().unwrap(), shares.orthogonal().unwrap()),
                (signed(&full), cosine),
            ] {
                assert!((one - other).abs() < 1e-5 * other.abs(), "{what}: {shares:?} {full:?}");
            }
        }
    }
}

#[test]
fn the_signed_gradient_equals_finite_differences() {
    let (d_out, d_in, r) = (12, 20, 3);
    let v = random(d_out, d_in, 0.5);
    let direction = direction(&v);
    let options = AsftOptions { lambda: 0.7.into(), penalize: Penalize::OrthogonalReverse, ..Default::default() };
    let penalty = Penalty::new(&options).unwrap();
    let operator = Operator::new(&options, &direction, &Device::Cpu).unwrap();
    let (a, b) = (random(r, d_in, 1.0), random(d_out, r, 1.0));
    let against = v.matmul(&a.t().unwrap()).unwrap();
    let b = (&b - (&against * (2.0 * norm(&b) / norm(&against))).unwrap()).unwrap();
    let value = |a: &Tensor, b: &Tensor| penalty.lora(Some(&operator), a, b, 1.0).unwrap().value.read().unwrap();
    let term = penalty.lora(Some(&operator), &a, &b, 1.0).unwrap();
    let h = 1e-2;
    for (x, gradient, of_a) in [(&a, &term.grad_a, true), (&b, &term.grad_b, false)] {
        // Along the gradient, where the difference stands out from rounding.
        let step = (gradient * (h / norm(gradient))).unwrap();
        let (up, down) = ((x + &step).unwrap(), (x - &step).unwrap());
        let difference = if of_a { value(&up, &b) - value(&down, &b) } else { value(&a, &up) - value(&a, &down) };
        let expected = 2.0 * inner(gradient, &step);
        assert!((difference / expected - 1.0).abs() < 1e-3, "{difference} {expected}");
    }
}

#[test]
fn a_truncated_direction_misses_no_more_of_v_than_stated() {
    let (d_out, d_in) = (64, 80);
    let v = random(d_out, d_in, 0.02);
    let direction = Direction::of(&v, Keep::Rank(20)).unwrap();
    let options = AsftOptions { penalize: Penalize::OrthogonalReverse, ..Default::default() };
    let bound = (1.0 - direction.energy()).sqrt();
    assert!(bound > 0.3, "{bound}");
    for _ in 0..20 {
        let delta = (random(d_out, d_in, 0.01) - (&v * 0.1).unwrap()).unwrap();
        let found = Products::full(Some(&direction), &delta).unwrap().signed(&direction).unwrap();
        let exact = inner(&delta, &v) / norm(&delta) / norm(&v);
        assert!((found - exact).abs() <= bound, "{found} {exact} {bound}");
    }
    // Without the right singular vectors there is no sign.
    let unsigned = Operator::new(&options, &direction.without_right(), &Device::Cpu).unwrap();
    let error = Penalty::new(&options).unwrap().full(Some(&unsigned), &v).err().unwrap();
    assert!(error.to_string().contains("right singular vectors"), "{error}");
}

#[test]
fn the_bound_on_signed_counts_what_is_left_out_and_rounded() {
    for ((d_out, d_in), keep, most) in [
        ((64, 80), Keep::Tolerance(0.0), 1e-5),
        // Most of an update lies outside a tall V's columns, so the residual's rounding counts.
        ((80, 64), Keep::Tolerance(0.0), 1e-3),
        ((48, 48), Keep::Tolerance(1e-2), 1.0),
        ((64, 80), Keep::Rank(20), 1.0),
        // Large and lax enough for products in f32.
        ((300, 320), Keep::Tolerance(1e-4), 1e-1),
        ((320, 290), Keep::Tolerance(1e-4), 1e-1),
    ] {
        let v = random(d_out, d_in, 0.02);
        let direction = Direction::of(&v, keep).unwrap();
        for turn in [-1.0, 0.0, 1.0] {
            let (a, b) = (random(4, d_in, 0.1), random(d_out, 4, 0.1));
            let b = (&b + (v.matmul(&a.t().unwrap()).unwrap() * (20.0 * turn)).unwrap()).unwrap();
            let delta = (random(d_out, d_in, 0.01) + (&v * (0.5 * turn)).unwrap()).unwrap();
            let lora = (Products::lora(Some(&direction), &a, &b, 2.0).unwrap(), wide(&b).matmul(&wide(&a)).unwrap(), 4);
            let full = (Products::full_wide(Some(&direction), &delta).unwrap(), wide(&delta), d_out.min(d_in));
            for (products, delta, rank) in [lora, full] {
                let bound = products.signed_bound(&direction, rank, keep).unwrap();
                let exact = inner(&delta, &wide(&v)) / norm(&delta) / norm(&wide(&v));
                let off = (products.signed(&direction).unwrap() - exact).abs();
                assert!(off <= bound && bound < most, "{keep:?} {turn}: off by {off:e}, bound {bound:e}");
                assert!(bound > 2e-7, "{bound:e}");
            }
        }
    }
}

#[test]
fn the_random_control_has_the_spectrum_and_nothing_else_of_v() {
    let (d_out, d_in, r) = (64, 80, 4);
    let v = random(d_out, d_in, 0.5);
    let stored = direction(&v);
    let direction = random_direction(&stored, "m", 3).unwrap();
    let right = direction.right().unwrap();
    let spectrum = Tensor::new(stored.sigma(), &Device::Cpu).unwrap();
    let other = wide(&direction.basis).broadcast_mul(&spectrum).unwrap().matmul(&wide(right).t().unwrap()).unwrap();
    assert!((norm(&other) / norm(&v) - 1.0).abs() < 1e-5);
    assert!(inner(&other, &v).abs() < 0.1 * norm(&v).powi(2), "{}", inner(&other, &v));
    let options = AsftOptions {
        lambda: 1.3.into(),
        penalize: Penalize::OrthogonalReverse,
        projector: Projector::Random,
        ..Default::default()
    };
    let operator = Operator::new(&options, &direction, &Device::Cpu).unwrap();
    let (a, b) = (random(r, d_in, 0.1), random(d_out, r, 0.05));
    let term = Penalty::new(&options).unwrap().lora(Some(&operator), &a, &b, 1.0).unwrap();
    let (value, by_delta) = literal_signed(&other, &wide(&b).matmul(&wide(&a)).unwrap(), 1.3);
    assert_value("random", term.value.read().unwrap(), value);
    assert_near("random", &term.grad_b, &by_delta.matmul(&wide(&a).t().unwrap()).unwrap());
}

/// The control of the subspace projector: as many directions as it keeps, from the seed, and none of V's.
#[test]
fn a_random_subspace_is_as_large_as_v_s_and_penalises_what_is_outside_it() {
    let (d_out, d_in, r) = (64, 80, 4);
    let stored = direction(&random(d_out, d_in, 0.5));
    let other = random_direction(&stored, "m", 3).unwrap();
    let of =
        |projector| AsftOptions { lambda: 1.3.into(), projector, subspace_energy: Some(0.5), ..Default::default() };
    let operator = |projector, direction| Operator::new(&of(projector), direction, &Device::Cpu).unwrap();
    let k = operator(Projector::Subspace, &stored).rank();
    let control = operator(Projector::RandomSubspace, &other);
    assert!(k > 1 && k < d_out && control.rank() == k, "{k} {}", control.rank());
    let (a, b) = (random(r, d_in, 0.1), random(d_out, r, 0.05));
    let basis = wide(&other.basis.narrow(1, 0, k).unwrap().contiguous().unwrap());
    let delta = wide(&b).matmul(&wide(&a)).unwrap();
    let outside = (&delta - basis.matmul(&basis.t().unwrap().matmul(&delta).unwrap()).unwrap()).unwrap();
    let term = Penalty::new(&of(Projector::RandomSubspace)).unwrap().lora(Some(&control), &a, &b, 1.0).unwrap();
    assert_value("random subspace", term.value.read().unwrap(), 1.3 * norm(&outside).powi(2));
    let expected = (outside.matmul(&wide(&a).t().unwrap()).unwrap() * (2.0 * 1.3)).unwrap();
    assert_near("random subspace", &term.grad_b, &expected);
}

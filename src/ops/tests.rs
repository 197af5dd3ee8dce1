//! Every kernel at sizes that are no multiple of a vector, tile or task, against the bodies for any device in f64 on
//! the same values.
//!
//! Inputs end where their allocation ends, so that a sanitizer sees a read one value too far
//! (scripts/check_sanitizers.sh). With ASFT_OPS set there is nothing to compare: the generic body rounds as the device
//! does, and does not support matrices without rows. The GPU's kernels have tests of their own (gpu/tests.rs).

use super::activation::Activation;
use super::attention::{Layout, Shape, Span};
use super::testing::{difference, random};
use super::{attention, cross_entropy, gated_mlp, linear, low_rank, rms_norm, rope, sum};
use candle_core::{DType, Device, Tensor, Var};

const ROWS: [usize; 5] = [0, 1, 2, 5, 67];
const WIDTHS: [usize; 11] = [1, 2, 3, 7, 15, 16, 17, 33, 64, 65, 131];
const TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Seeded values [rows, columns] that start inside their allocation and end with it.
fn matrix(rows: usize, columns: usize, dtype: DType, seed: u64) -> Tensor {
    random(&[rows + 1, columns], seed).to_dtype(dtype).unwrap().narrow(0, 1, rows).unwrap()
}

/// A type that no kernel takes.
fn wide(x: &Tensor) -> Tensor {
    x.to_dtype(DType::F64).unwrap()
}

#[track_caller]
fn expect(got: &Tensor, expected: &Tensor, what: impl std::fmt::Debug) {
    let tolerance = if got.dtype() == DType::F32 { 2e-5 } else { 2e-2 };
    assert_eq!(got.dims(), expected.dims(), "{what:?}");
    // Values near zero are mostly the rounding of larger ones: there the error is absolute.
    let length = wide(expected).sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
    let error = difference(got, expected) * length.min(1.0);
    assert!(error <= tolerance, "error {error} for {what:?}");
}

/// Every number of rows, width and type.
fn sizes() -> impl Iterator<Item = (usize, usize, DType)> {
    ROWS.into_iter().flat_map(|n| WIDTHS.into_iter().flat_map(move |d| TYPES.map(|dtype| (n, d, dtype))))
}

#[test]
fn elementwise_kernels_of_any_size() {
    if !super::has_cpu_kernels() {
        return;
    }
    for (n, d, dtype) in sizes().chain([(3, 10_923, DType::F32)]) {
        let [x, y, z] = [1, 2, 3].map(|seed| matrix(n, d, dtype, seed));
        expect(&sum::add(&x, &y).unwrap(), &(wide(&x) + wide(&y)).unwrap(), ("add", n, d, dtype));
        if n == 0 {
            continue;
        }
        let square = wide(&x).sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
        assert!((sum::square_sum(&x).unwrap().read().unwrap() / square - 1.0).abs() < 1e-6, "{n} {d} {dtype:?}");
        for activation in Activation::ALL {
            let what = (activation, n, d, dtype);
            let expected = gated_mlp::forward(&wide(&x), &wide(&y), activation).unwrap();
            expect(&gated_mlp::forward(&x, &y, activation).unwrap(), &expected, what);
            let (dg, du) = gated_mlp::backward(&x, &y, &z, activation).unwrap();
            let expected = gated_mlp::backward(&wide(&x), &wide(&y), &wide(&z), activation).unwrap();
            expect(&dg, &expected.0, what);
            expect(&du, &expected.1, what);
        }
    }
}

#[test]
fn kernels_of_rows_of_any_size() {
    if !super::has_cpu_kernels() {
        return;
    }
    for (n, d, dtype) in sizes() {
        let (x, dy, w) = (matrix(n, d, dtype, 1), matrix(n, d, dtype, 2), random(&[d], 3).to_dtype(dtype).unwrap());
        let (y, saved) = rms_norm::forward(&x, &w, 1e-5).unwrap();
        let dx = rms_norm::backward_input(&saved, &w, &dy).unwrap();
        assert_eq!((y.dims(), dx.dims()), (x.dims(), x.dims()));
        let stretch = |frequencies| rope::Stretch { start: 3, length: n, frequencies, magnitude: 1.5 };
        let frequencies: Vec<f32> = (0..d).map(|i| 0.7 / (i + 1) as f32).collect();
        let angles = rope::Angles::new(&[stretch(frequencies)], x.device()).unwrap();
        let heads = matrix(n, 2 * d * (1 + n % 3), dtype, 4);
        let turned = rope::forward(&heads, &angles).unwrap();
        assert_eq!(turned.dims(), heads.dims());
        if n == 0 {
            continue;
        }
        let (expected, saved) = rms_norm::forward(&wide(&x), &wide(&w), 1e-5).unwrap();
        expect(&y, &expected, ("norm", n, d, dtype));
        let expected = rms_norm::backward_input(&saved, &wide(&w), &wide(&dy)).unwrap();
        expect(&dx, &expected, ("norm's gradient", n, d, dtype));
        expect(&turned, &rope::forward(&wide(&heads), &angles).unwrap(), ("rope", n, d, dtype));
        expect(&rope::backward(&turned, &angles).unwrap(), &(wide(&heads) * 2.25).unwrap(), ("back", n, d, dtype));
    }
}

#[test]
fn products_of_any_size() {
    if !super::has_cpu_kernels() {
        return;
    }
    let sides = [1, 3, 8, 16, 17, 65];
    for (n, d_in) in ROWS.into_iter().flat_map(|n| sides.map(|d_in| (n, d_in))) {
        for (d_out, dtype) in sides.into_iter().flat_map(|d_out| TYPES.map(|dtype| (d_out, dtype))) {
            let what = (n, d_in, d_out, dtype);
            let (x, dy) = (matrix(n, d_in, dtype, 1), matrix(n, d_out, dtype, 2));
            let [w, u] = [3, 4].map(|seed| matrix(d_out, d_in, dtype, seed));
            let y = linear::forward(&x, &w, None).unwrap();
            let dx = linear::backward_input(&dy, &w).unwrap();
            let logits = linear::forward_f32(&x, &w).unwrap();
            let [each, other] = linear::forward_each(&x, [(&w, None), (&u, None)]).unwrap();
            let twice = linear::forward_sum(&[(&x, &w), (&x, &u)], None).unwrap();
            let back = linear::backward_input_sum(&[(&dy, &w), (&dy, &u)]).unwrap();
            assert_eq!((y.dims(), dx.dims()), (dy.dims(), x.dims()));
            if n == 0 {
                continue;
            }
            let [x, dy, w, u] = [x, dy, w, u].map(|x| (wide(&x), x));
            let product = |a: &(Tensor, Tensor), b: &(Tensor, Tensor)| a.0.matmul(&b.0.t().unwrap()).unwrap();
            let input = |w: &(Tensor, Tensor)| dy.0.matmul(&w.0).unwrap();
            expect(&y, &product(&x, &w), what);
            expect(&logits, &product(&x, &w), what);
            expect(&each, &product(&x, &w), what);
            expect(&other, &product(&x, &u), what);
            expect(&twice, &(product(&x, &w) + product(&x, &u)).unwrap(), what);
            expect(&dx, &input(&w), what);
            expect(&back, &(input(&w) + input(&u)).unwrap(), what);
            let expected = dy.0.t().unwrap().matmul(&x.0).unwrap();
            expect(&linear::backward_weight(&dy.1, &x.1).unwrap(), &expected, what);
        }
    }
}

#[test]
fn losses_of_any_size() {
    if !super::has_cpu_kernels() {
        return;
    }
    for (m, d, vocab) in
        [(1, 1, 1), (1, 3, 2), (2, 7, 17), (5, 1, 1_025), (17, 33, 65), (67, 16, 1_040), (3, 65, 2_049)]
    {
        for (dtype, cap) in TYPES.into_iter().flat_map(|dtype| [None, Some(1.5)].map(|cap| (dtype, cap))) {
            let what = (m, d, vocab, dtype, cap);
            let (h, w) = (matrix(m, d, dtype, 1), matrix(vocab, d, dtype, 2));
            let targets: Vec<u32> = (0..m).map(|i| ((i * 7 + vocab - 1) % vocab) as u32).collect();
            let got = cross_entropy::losses_backward(&h, &w, &targets, 0.3, true, cap).unwrap();
            let exact = cross_entropy::losses_backward(&wide(&h), &wide(&w), &targets, 0.3, true, cap).unwrap();
            let alone = cross_entropy::losses(&h, &w, &targets, cap).unwrap();
            let (losses, expected) = (got.0.read().unwrap(), exact.0.read().unwrap());
            for losses in [&losses, &alone] {
                assert!(losses.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-4), "{losses:?} {what:?}");
            }
            expect(&got.1.hidden, &exact.1.hidden, what);
            expect(&got.1.head.unwrap(), &exact.1.head.unwrap(), what);
        }
    }
}

#[test]
fn heads_of_any_size() {
    if !super::has_cpu_kernels() {
        return;
    }
    let lengths: [&[usize]; 5] = [&[1], &[2, 1, 3], &[63, 65], &[129, 1], &[0, 5, 0]];
    let layouts = lengths.map(Layout::new).into_iter();
    let cached = |new, old| Layout::cached(vec![Span { q_start: 0, q_len: new, k_start: 1, k_len: old + new }]);
    for layout in layouts.chain([cached(1, 0), cached(1, 70), cached(65, 1), cached(2, 127)]) {
        let whole = layout.spans.iter().all(|span| span.q_len > 0);
        let rows = layout.spans.iter().map(|span| span.q_len).sum();
        let keys = layout.spans.iter().map(|span| span.k_start + span.k_len).max().unwrap();
        for (i, head_dim) in [1, 2, 7, 16, 17, 33, 64, 65].into_iter().enumerate() {
            let (heads, kv_heads) = [(1, 1), (3, 1), (4, 2)][i % 3];
            let (window, cap, dtype) = ([None, Some(1), Some(64)][i % 3], [None, Some(2.0)][i % 2], TYPES[i / 3 % 3]);
            let shape = Shape { heads, kv_heads, head_dim, scale: 0.5, window, cap };
            let what = (shape, &layout.spans, dtype);
            let [q, dy] = [1, 2].map(|seed| matrix(rows, heads * head_dim, dtype, seed));
            let [k, v] = [3, 4].map(|seed| matrix(keys, kv_heads * head_dim, dtype, seed));
            let (y, saved) = attention::forward(&q, &k, &v, shape, &layout).unwrap();
            let (dq, dk, dv) = attention::backward(&saved, &dy, shape, &layout).unwrap();
            assert_eq!((dq.dims(), dk.dims(), dv.dims()), (q.dims(), k.dims(), v.dims()));
            // The other body gives gradients only for the keys of its spans, and supports no empty spans.
            if whole {
                let (exact, saved) = attention::forward(&wide(&q), &wide(&k), &wide(&v), shape, &layout).unwrap();
                let (exact_q, exact_k, exact_v) = attention::backward(&saved, &wide(&dy), shape, &layout).unwrap();
                let first = keys - exact_k.dim(0).unwrap();
                let part = |x: &Tensor| x.narrow(0, first, keys - first).unwrap();
                expect(&y, &exact, what);
                expect(&part(&dv), &exact_v, what);
                expect(&dq, &exact_q, what);
                expect(&part(&dk), &exact_k, what);
            }
        }
    }
}

#[test]
fn low_rank_kernels_of_any_size() {
    if !super::has_cpu_kernels() {
        return;
    }
    for (n, d) in ROWS.into_iter().flat_map(|n| WIDTHS.map(|d| (n, d))) {
        let (a, g, h) = (matrix(n, d, DType::F32, 1), matrix(d, n, DType::F32, 2), matrix(d, n, DType::F32, 3));
        let (inner, grad_a, grad_b) = low_rank::products(&a, (&g, &g), &h, 0.7).unwrap();
        assert_eq!((grad_a.dims(), grad_b.dims()), (a.dims(), h.dims()));
        let [c, e] = [4, 5].map(|seed| matrix(n, 1, DType::F32, seed));
        let both = low_rank::weighted(&a, &[&c, &e]).unwrap();
        let (first, second) = low_rank::halves(&both, Some(&a)).unwrap();
        assert_eq!((both.dims(), first.dims()), ([n, 2 * d].as_slice(), a.dims()));
        if n > 0 {
            let exact = low_rank::products(&wide(&a), (&wide(&g), &wide(&g)), &wide(&h), 0.7).unwrap();
            assert!((inner.read().unwrap() - exact.0.read().unwrap()).abs() < 1e-6 * (n * d * d) as f64, "{n} {d}");
            expect(&grad_a, &exact.1, ("A", n, d));
            expect(&grad_b, &exact.2, ("B", n, d));
            for (half, weight) in [(first, c), (second, e)] {
                expect(&half, &(&a - a.broadcast_mul(&weight).unwrap()).unwrap(), ("half", n, d));
            }
        }
    }
}

#[test]
fn an_owned_copy_does_not_change_with_its_origin() {
    let var = Var::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
    let view = var.as_tensor().t().unwrap();
    let (whole, turned) = (super::owned(var.as_tensor()).unwrap(), super::owned(&view).unwrap());
    var.set(&var.zeros_like().unwrap()).unwrap();
    assert_eq!(whole.to_vec2::<f32>().unwrap(), [[1.0, 2.0], [3.0, 4.0]]);
    assert_eq!(turned.to_vec2::<f32>().unwrap(), [[1.0, 3.0], [2.0, 4.0]]);
}

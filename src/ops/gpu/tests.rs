//! Every kernel on the shim against the CPU's kernel and the generic body, at sizes that fill no pack, warp or tile, in
//! every type, and with the threads of a block in either order: a missing barrier shows as a difference.

#![allow(unsafe_code, reason = "launches")]

use super::{Arg, Kernels, Launch, Serving, registry, shim};
use crate::device::Accelerator;
use crate::ops::activation::Activation;
use crate::ops::attention::{Layout, Shape, Span};
use crate::ops::parameters::{self, Moved, Step};
use crate::ops::testing::{close, difference, random};
use crate::ops::weight::Weight;
use crate::ops::{Bodies, attention, cross_entropy, dropout, gated_mlp, linear, rms_norm, rope, softcap, sum};
use crate::quant::ggml::GgmlType;
use crate::quant::{Blocks, Format, FourBit, Kind, Parts, Quantised, Rounding, Scales};
use candle_core::{DType, Device, Tensor};
use std::cell::Cell;
use std::sync::atomic::AtomicBool;

thread_local! {
    /// The bodies that this test thread asks for.
    pub static CHOSEN: Cell<Option<Bodies>> = const { Cell::new(None) };
}

const TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
const WIDTHS: [usize; 9] = [1, 2, 7, 8, 17, 64, 250, 264, 1_030];

/// What `body` computes with these bodies.
pub fn with<R>(bodies: Bodies, body: impl FnOnce() -> R) -> R {
    CHOSEN.set(Some(bodies));
    let result = body();
    CHOSEN.set(None);
    result
}

/// The same with the threads of a block in the other order.
pub fn backwards<R>(body: impl FnOnce() -> R) -> R {
    shim::BACKWARDS.set(true);
    let result = body();
    shim::BACKWARDS.set(false);
    result
}

fn bits(x: &Tensor) -> Vec<u32> {
    let wide = x.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
    wide.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// Asserts that the kernels, in CUDA's words and in Metal's, give the same bits in either order of threads, and what the other
/// bodies give.
#[track_caller]
pub fn check(what: impl std::fmt::Debug, body: impl Fn() -> Vec<Tensor>) {
    let got = with(Bodies::Shim, &body);
    let of_metal = with(Bodies::MetalShim, &body);
    for (got, shim) in [(&got, Bodies::Shim), (&of_metal, Bodies::MetalShim)] {
        let backwards = backwards(|| with(shim, &body));
        for (i, (got, backwards)) in got.iter().zip(&backwards).enumerate() {
            assert!(bits(got) == bits(backwards), "result {i} of {what:?} depends on the order of threads by {shim:?}");
        }
    }
    compare(&what, &got, &body);
    compare(&what, &of_metal, &body);
}

/// Asserts that these are what the other bodies give.
#[track_caller]
fn compare(what: impl std::fmt::Debug, got: &[Tensor], body: impl Fn() -> Vec<Tensor>) {
    for bodies in [Bodies::Kernels, Bodies::Generic] {
        let expected = with(bodies, &body);
        assert_eq!(got.len(), expected.len());
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert_eq!((got.dtype(), got.dims()), (expected.dtype(), expected.dims()), "result {i} of {what:?}");
            let tolerance = match got.dtype() {
                DType::F32 => 1e-5,
                DType::F16 => 3e-3,
                _ => 2e-2,
            };
            // Values near zero are mostly the rounding of larger ones: there the error is absolute.
            let length = expected.to_dtype(DType::F32).unwrap().sqr().unwrap().sum_all().unwrap();
            let error = difference(got, expected) * f64::from(length.to_scalar::<f32>().unwrap().sqrt()).min(1.0);
            assert!(error <= tolerance, "result {i} of {what:?} differs by {error} from {bodies:?}");
        }
    }
}

fn tensor(shape: &[usize], dtype: DType, seed: u64) -> Tensor {
    random(shape, seed).to_dtype(dtype).unwrap()
}

#[test]
fn norms_equal_the_other_bodies() {
    for (d, dtype) in WIDTHS.into_iter().flat_map(|d| TYPES.map(|dtype| (d, dtype))) {
        let n = 1 + d % 40;
        let [x, added, dy] = [1, 2, 3].map(|seed| tensor(&[n, d], dtype, seed));
        let w = random(&[d], 4);
        check(("norm", n, d, dtype), || {
            let (y, saved) = rms_norm::forward(&x, &w, 1e-5).unwrap();
            let dx = rms_norm::backward_input(&saved, &w, &dy).unwrap();
            vec![y, dx, rms_norm::backward_weight(&saved, &dy).unwrap()]
        });
        check(("norm of a sum", n, d, dtype), || {
            let (sum, y, saved) = rms_norm::forward_sum(&x, &added, &w, 1e-5).unwrap();
            vec![sum, y, rms_norm::backward_input_sum(&saved, &w, &dy, &added).unwrap()]
        });
    }
}

#[test]
fn maps_equal_the_other_bodies() {
    for (d, dtype) in WIDTHS.into_iter().flat_map(|d| TYPES.map(|dtype| (d, dtype))) {
        let n = 1 + d % 5;
        let [x, y, z] = [1, 2, 3].map(|seed| (tensor(&[n, d], dtype, seed) * 4.0).unwrap());
        for activation in Activation::ALL {
            check((activation, n, d, dtype), || {
                let (dg, du) = gated_mlp::backward(&x, &y, &z, activation).unwrap();
                vec![gated_mlp::forward(&x, &y, activation).unwrap(), dg, du]
            });
        }
        check(("softcap", n, d, dtype), || {
            let capped = softcap::forward(&x, 3.0).unwrap();
            vec![softcap::backward(&capped, &z, 3.0).unwrap(), capped]
        });
        let wide = z.to_dtype(DType::F32).unwrap();
        check(("sum", n, d, dtype), || vec![sum::add(&x, &wide).unwrap()]);
        let heads = tensor(&[n, 3 * 2 * d], dtype, 5);
        let frequencies = (0..d).map(|i| 0.7 / (i + 1) as f32).collect();
        let stretch = rope::Stretch { start: 3, length: n, frequencies, magnitude: 1.5 };
        let angles = rope::Angles::new(&[stretch], heads.device()).unwrap();
        check(("rope", n, d, dtype), || {
            vec![rope::forward(&heads, &angles).unwrap(), rope::backward(&heads, &angles).unwrap()]
        });
    }
}

/// Whole heads and beginnings of them, in halves and in neighbours, with beginnings and rests that fill no pack.
#[test]
fn rotations_of_any_part_and_pairing_equal_the_other_bodies() {
    for (turns, rest) in [(1, 0), (1, 1), (3, 5), (4, 8), (7, 2), (8, 16), (9, 9), (16, 96), (33, 0), (20, 40)] {
        for (interleaved, dtype) in [false, true].into_iter().flat_map(|pairs| TYPES.map(|dtype| (pairs, dtype))) {
            let (n, head_dim) = (1 + turns % 5, 2 * turns + rest);
            let frequencies = (0..turns).map(|i| 0.7 / (i + 1) as f32).collect();
            let stretch = rope::Stretch { start: 3, length: n, frequencies, magnitude: 1.5 };
            let heads = rope::Heads { head_dim, rotary_dim: 2 * turns, interleaved };
            let angles = rope::Angles::new(&[stretch], &Device::Cpu).unwrap().of(heads);
            let x = tensor(&[n, 3 * head_dim], dtype, 5);
            check((heads, n, dtype), || {
                vec![rope::forward(&x, &angles).unwrap(), rope::backward(&x, &angles).unwrap()]
            });
        }
    }
}

#[test]
fn masks_are_those_of_the_cpu_bit_for_bit() {
    for (shape, probability) in [([3, 7], 0.5), ([40, 41], 0.05), ([1, 20_001], 0.9)] {
        for dtype in TYPES {
            let (x, key) = (tensor(&shape, dtype, 5), u64::MAX - 77);
            let dropped = || bits(&dropout::apply(&x, probability, key).unwrap());
            let widened = || bits(&dropout::apply_widened(&x, probability, key).unwrap());
            for shim in [Bodies::Shim, Bodies::MetalShim] {
                assert_eq!(with(shim, dropped), with(Bodies::Kernels, dropped), "{shape:?} {dtype:?} {shim:?}");
                assert_eq!(with(shim, widened), with(Bodies::Kernels, widened), "{shape:?} {dtype:?} {shim:?}");
            }
            let part = random(&shape, 6);
            check(("dropped part", shape, dtype), || vec![dropout::add(&x, &part, probability, key).unwrap()]);
        }
    }
}

/// q, k, v and dy for a layout; scores large enough for their softmax to matter.
fn heads(layout: &Layout, shape: Shape, dtype: DType) -> [Tensor; 4] {
    let rows = layout.spans.iter().map(|span| span.q_len).sum();
    let keys = layout.spans.iter().map(|span| span.k_start + span.k_len).max().unwrap();
    let large = |x: Tensor| (x * 2.0).unwrap();
    [
        large(tensor(&[rows, shape.heads * shape.head_dim], dtype, 1)),
        large(tensor(&[keys, shape.kv_heads * shape.head_dim], dtype, 2)),
        tensor(&[keys, shape.kv_heads * shape.head_dim], dtype, 3),
        tensor(&[rows, shape.heads * shape.head_dim], dtype, 4),
    ]
}

fn check_attention(layout: &Layout, shape: Shape, dtype: DType) {
    let [q, k, v, dy] = heads(layout, shape, dtype);
    let trains = layout.spans.iter().all(|span| span.q_len == span.k_len);
    check((shape, &layout.spans, dtype), || {
        let (y, saved) = attention::forward(&q, &k, &v, shape, layout).unwrap();
        if !trains {
            return vec![y];
        }
        let (dq, dk, dv) = attention::backward(&saved, &dy, shape, layout).unwrap();
        vec![y, dq, dk, dv]
    });
}

#[test]
fn attention_equals_the_other_bodies_for_every_size_of_head() {
    for (i, head_dim) in [2, 7, 16, 64, 80, 96, 128, 130, 256].into_iter().enumerate() {
        for dtype in TYPES {
            let (heads, kv_heads) = [(1, 1), (3, 1), (4, 2)][i % 3];
            let scale = 1.0 / (head_dim as f64).sqrt();
            let shape = Shape { heads, kv_heads, head_dim, scale, window: None, cap: None };
            check_attention(&Layout::new(&[37, 1, 67]), shape, dtype);
        }
    }
}

#[test]
fn attention_equals_the_other_bodies_for_every_layout_window_and_cap() {
    let cached = |new, cached| Layout::cached(vec![Span { q_start: 0, q_len: new, k_start: 0, k_len: cached + new }]);
    let layouts =
        [vec![1], vec![64, 64], vec![3, 70, 129], vec![1, 1, 5], vec![200]].map(|lengths| Layout::new(&lengths));
    for layout in layouts.into_iter().chain([cached(1, 76), cached(3, 67), cached(65, 1)]) {
        for (window, cap) in [(None, None), (Some(50), None), (None, Some(2.0)), (Some(2), Some(2.0)), (Some(70), None)]
        {
            let shape = Shape { heads: 4, kv_heads: 2, head_dim: 24, scale: 0.3, window, cap };
            for dtype in [DType::F32, DType::BF16] {
                check_attention(&layout, shape, dtype);
            }
        }
    }
}

#[test]
fn losses_equal_the_other_bodies() {
    for (m, d, vocab) in [(1, 3, 1), (3, 7, 17), (5, 16, 1_025), (2, 33, 9_000)] {
        for (dtype, cap) in TYPES.into_iter().flat_map(|dtype| [None, Some(1.5)].map(|cap| (dtype, cap))) {
            let (h, w) = (tensor(&[m, d], dtype, 1), tensor(&[vocab, d], dtype, 2));
            let targets: Vec<u32> = (0..m).map(|i| ((i * 7 + vocab - 1) % vocab) as u32).collect();
            let vector = |values: Vec<f64>| Tensor::new(values, h.device()).unwrap().to_dtype(dtype).unwrap();
            check(("losses", m, d, vocab, dtype, cap), || {
                let (losses, gradients) = cross_entropy::losses_backward(&h, &w, &targets, 0.3, true, cap).unwrap();
                let alone = cross_entropy::losses(&h, &w, &targets, cap).unwrap();
                // A sum in f32 of what was rounded to the type.
                let head = gradients.head.as_ref().unwrap().to_dtype(dtype).unwrap();
                vec![vector(losses.read().unwrap()), vector(alone), gradients.hidden, head]
            });
        }
    }
    let h = random(&[2, 3], 1);
    let losses = || cross_entropy::losses(&h, &random(&[4, 3], 2), &[3, 4], None).unwrap();
    let losses = with(Bodies::Shim, losses);
    assert!(losses[0].is_finite() && losses[1].is_nan(), "{losses:?}");
}

#[test]
fn adamw_moves_all_parameters_as_its_formula_says() {
    let shapes: [&[usize]; 4] = [&[4_097], &[3, 5], &[1], &[90, 91]];
    let start: Vec<Tensor> = (0..4).map(|i| random(shapes[i], 10 + i as u64)).collect();
    let step = Step { betas: [0.9, 0.99], scale: 0.5, root: 0.3, epsilon: 1e-8 };
    let (rate, keep) = (0.01, 0.999);
    // θ, m and v after two steps.
    let kernels = || {
        let theta: Vec<Tensor> = start.iter().map(|x| x.force_contiguous().unwrap()).collect();
        let [m, v] = [(); 2].map(|()| start.iter().map(|x| x.zeros_like().unwrap()).collect::<Vec<_>>());
        for seed in 0..2 {
            let gradients: Vec<Tensor> = shapes.iter().map(|shape| random(shape, seed)).collect();
            let moved = |i: usize| Moved {
                parameter: &theta[i],
                m: &m[i],
                v: &v[i],
                gradient: &gradients[i],
                rate,
                keep: if i == 0 { 1.0 } else { keep },
            };
            assert!(parameters::adamw(&(0..4).map(moved).collect::<Vec<_>>(), &step).unwrap());
            let squares = parameters::square_sum(&gradients.iter().collect::<Vec<_>>()).unwrap().unwrap();
            let one_by_one: f64 = gradients.iter().map(|g| sum::square_sum(g).unwrap().read().unwrap()).sum();
            assert!((squares.read().unwrap() / one_by_one - 1.0).abs() < 1e-6);
        }
        [theta, m, v].concat()
    };
    let got = with(Bodies::Shim, kernels);
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    for i in 0..4 {
        let (mut theta, keep) = (wide(&start[i]), if i == 0 { 1.0 } else { keep });
        let (mut m, mut v) = (vec![0.0; theta.len()], vec![0.0; theta.len()]);
        for seed in 0..2 {
            for (at, g) in wide(&random(shapes[i], seed)).into_iter().map(|g| g * step.scale).enumerate() {
                m[at] = 0.9 * m[at] + 0.1 * g;
                v[at] = 0.99 * v[at] + 0.01 * g * g;
                theta[at] = keep * theta[at] - rate * m[at] / (f64::sqrt(v[at]) / step.root + step.epsilon);
            }
        }
        for (got, expected) in [(&got[i], theta), (&got[4 + i], m), (&got[8 + i], v)] {
            close(got, &Tensor::from_vec(expected, shapes[i], &Device::Cpu).unwrap(), 1e-6);
        }
    }
    assert!(!with(Bodies::Kernels, || parameters::adamw(&[], &step).unwrap()));
}

/// Every quantised format that has a kernel, to the bits of its definition, in blocks whose scales are quantised and plain.
#[test]
fn quantised_weights_are_widened_to_the_same_bits() {
    let values: Vec<f32> = random(&[40 * 512], 1).to_vec1().unwrap();
    let ggml = [GgmlType::Q4_0, GgmlType::Q4_1, GgmlType::Q8_0, GgmlType::Q4K, GgmlType::Q6K].map(Format::Ggml);
    let of_size = |format: Format, rows: usize, columns: usize| {
        let matrix = format.quantise((rows, columns), &values[..rows * columns]).unwrap();
        (format!("{format} {rows} x {columns}"), matrix)
    };
    let whole = ggml.map(|format| of_size(format, 40, 512));
    let four = [(40, 512), (33, 65), (7, 50)].map(|(rows, columns)| of_size(Format::FourBit(Kind::Nf4), rows, columns));
    let plain = Parts {
        packed: (0..100).collect(),
        block: 32,
        table: Kind::Fp4.table(),
        scales: Scales::Plain((0..7).map(|i| 0.37 + i as f32).collect()),
        rounding: Rounding::Bf16,
    };
    let plain = Quantised::new((4, 50), Blocks::FourBit(FourBit::new(200, plain).unwrap())).unwrap();
    for (what, matrix) in whole.into_iter().chain(four).chain([("plain scales".to_string(), plain)]) {
        let exact = Tensor::from_vec(matrix.widened(), matrix.shape(), &Device::Cpu).unwrap();
        for dtype in TYPES {
            for bodies in [Bodies::Shim, Bodies::MetalShim, Bodies::Generic] {
                let got =
                    with(bodies, || Weight::quantised(matrix.clone(), &Device::Cpu).unwrap().dense(dtype).unwrap());
                assert_eq!(got.dtype(), dtype);
                assert!(bits(&got) == bits(&exact.to_dtype(dtype).unwrap()), "{what} in {dtype:?} by {bodies:?}");
            }
        }
    }
}

#[test]
fn logits_of_half_operands_are_not_rounded() {
    for dtype in [DType::BF16, DType::F16] {
        let (x, w) = (tensor(&[37, 70], dtype, 1), tensor(&[50, 70], dtype, 2));
        let wide = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
        let expected = wide(&x).matmul(&wide(&w).t().unwrap()).unwrap();
        close(&with(Bodies::Shim, || linear::forward_f32(&x, &w)).unwrap(), &expected, 1e-6);
        // The body for any device has the product of its operands' type.
        let rounded = with(Bodies::Generic, || linear::forward_f32(&x, &w)).unwrap();
        assert!(difference(&rounded, &expected) > 1e-5);
    }
}

/// The form of f32's products that only a GPU uses is that of the shim.
#[test]
fn products_by_shuffles_are_products() {
    let (a, b) = (random(&[16, 16], 1), random(&[8, 16], 2));
    let c = Tensor::zeros((2, 16, 8), DType::F32, &Device::Cpu).unwrap();
    let launch = Launch::new(&registry::ATTENTION, "multiply_both_ways", DType::F32, [1, 1, 1], (32, 0));
    // SAFETY: whole matrices of the sizes that the kernel has.
    with(Bodies::Shim, || unsafe { launch.run(&[Arg::In(&a), Arg::In(&b), Arg::Out(&c)]) }).unwrap();
    let expected = a.matmul(&b.t().unwrap()).unwrap();
    close(&c.get(0).unwrap(), &expected, 1e-6);
    close(&c.get(1).unwrap(), &expected, 1e-6);
}

#[test]
fn kernels_serve_what_they_can_until_they_are_switched_off() {
    let kernels = Kernels { name: "none", source: "none", entry: "none", is_off: AtomicBool::new(false) };
    let (x, y) = (random(&[4, 6], 1), tensor(&[4, 6], DType::BF16, 2));
    let serve = |tensors: &[&Tensor]| with(Bodies::Shim, || kernels.serve(tensors));
    assert!(serve(&[&x, &y]));
    assert!(!serve(&[&x, &y.t().unwrap()]) && !serve(&[&x.to_dtype(DType::F64).unwrap()]));
    assert!(!with(Bodies::Generic, || kernels.serve(&[&x])) && !with(Bodies::Kernels, || kernels.serve(&[&x])));
    kernels.switch_off();
    assert!(!serve(&[&x, &y]));
    // Attention, ggml's blocks, the penalty and AdamW are not written for Metal.
    let on_metal: Vec<&str> = with(Bodies::MetalShim, || {
        registry::ALL.iter().filter(|kernels| kernels.serve(&[&x])).map(|kernels| kernels.name).collect()
    });
    assert_eq!(
        on_metal,
        ["causal_conv", "cross_entropy", "dropout", "gated_mlp", "quantised", "rms_norm", "rope", "softcap", "sum"]
    );
}

#[test]
fn what_will_serve_on_a_gpu_is_known_without_one() {
    for (bodies, accelerator) in [(Bodies::Shim, Accelerator::Cuda), (Bodies::MetalShim, Accelerator::Metal)] {
        assert_eq!(with(bodies, || Serving::on(&Device::Cpu)), Serving::of(accelerator), "{bodies:?}");
    }
    assert!(Serving::of(Accelerator::Cuda).attention && !Serving::of(Accelerator::Metal).attention);
}

#[test]
fn a_launch_that_no_kernel_fits_is_an_error() {
    let x = random(&[4, 6], 1);
    let launch = |entry| Launch::map(&registry::SOFTCAP, entry, DType::F32, 24);
    // SAFETY: no kernel runs.
    let errors = with(Bodies::Shim, || unsafe {
        [launch("no_such_kernel").run(&[Arg::In(&x)]), launch("softcap_forward").run(&[Arg::In(&x)])]
    });
    let errors = errors.map(|error| format!("{:#}", error.unwrap_err()));
    assert_eq!(errors[0], "the kernel no_such_kernel in F32: there is no such kernel");
    assert_eq!(errors[1], "the kernel softcap_forward in F32: it does not take 1 arguments");
    // SAFETY: as above.
    let run = |first| unsafe { launch("softcap_forward").run(&[first, Arg::In(&x)]) };
    assert!(with(Bodies::Shim, || run(Arg::Small(1 << 32))).is_err());
    // Without the shim there is nothing to run.
    assert!(with(Bodies::Generic, || run(Arg::Small(1))).is_err());
}

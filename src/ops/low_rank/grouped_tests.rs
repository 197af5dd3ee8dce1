//! The penalty's kernels on the shim against the formulas in f64, with the threads of a block in either order.

use super::Image;
use super::grouped::{self, Adapted};
use crate::ops::gpu::tests::{backwards, with};
use crate::ops::testing::{close, random};
use crate::ops::{Bodies, owned};
use candle_core::{DType, Tensor};

/// A, B, U, c, and gradients that the penalty's are added to.
fn module([r, d_in, d_out, k]: [usize; 4], seed: u64) -> [Tensor; 6] {
    let shapes = [[r, d_in], [d_out, r], [d_out, k], [k, 1], [r, d_in], [d_out, r]];
    std::array::from_fn(|i| random(&shapes[i], seed + i as u64))
}

fn weight(number: usize) -> f64 {
    0.5 + number as f64
}

/// Value, dA and dB by the head of method/penalty.rs; without a direction, of B itself.
fn by_hand([a, b, basis, c, ..]: &[Tensor; 6], image: Image, directed: bool, weight: f64) -> [Tensor; 3] {
    let [a, b, basis, c] = [a, b, basis, c].map(|x| x.to_dtype(DType::F64).unwrap());
    let y = basis.t().unwrap().matmul(&b).unwrap();
    let times = |weights: &Tensor| basis.matmul(&y.broadcast_mul(weights).unwrap()).unwrap();
    let square = c.sqr().unwrap();
    let (g, h) = match image {
        _ if !directed => (b.clone(), b),
        Image::Aligned => (times(&c), times(&square)),
        Image::Rest => ((&b - times(&c)).unwrap(), (&b - times(&((&c * 2.0).unwrap() - square).unwrap())).unwrap()),
    };
    let (s, t) = (a.matmul(&a.t().unwrap()).unwrap(), g.t().unwrap().matmul(&g).unwrap());
    let twice = |x: Tensor| (x * (2.0 * weight)).unwrap();
    [
        ((&s * &t).unwrap().sum_all().unwrap() * weight).unwrap(),
        twice(t.matmul(&a).unwrap()),
        twice(h.matmul(&s).unwrap()),
    ]
}

/// Values, and the gradients of A and B of each module.
fn run(modules: &[[Tensor; 6]], image: Image, directed: impl Fn(usize) -> bool) -> (Tensor, Vec<[Tensor; 2]>) {
    let gradients: Vec<[Tensor; 2]> =
        modules.iter().map(|[.., of_a, of_b]| [of_a, of_b].map(|x| owned(x).unwrap())).collect();
    let adapted = modules.iter().zip(&gradients).enumerate().map(|(i, ([a, b, basis, c, ..], gradients))| Adapted {
        a,
        b,
        direction: directed(i).then_some((basis, c)),
        weight: weight(i),
        gradients: gradients.each_ref(),
    });
    let adapted: Vec<Adapted<'_>> = adapted.collect();
    let values = with(Bodies::Shim, || grouped::add(&adapted, image)).unwrap().unwrap();
    (values, gradients)
}

#[test]
fn penalties_together_are_what_their_formulas_say() {
    // r, d_in, d_out, k: more columns than a block has, more rows, one of everything, a rank that makes blocks longer.
    let sizes = [[8, 700, 70, 40], [3, 33, 517, 17], [1, 1, 1, 1], [40, 50, 90, 90]];
    let modules: Vec<[Tensor; 6]> = (10..).step_by(10).zip(sizes).map(|(seed, size)| module(size, seed)).collect();
    for image in [Image::Rest, Image::Aligned] {
        // Where C is 0, B itself is the rest.
        let directed = |i: usize| image == Image::Aligned || i != 1;
        let (values, gradients) = run(&modules, image, directed);
        let (again, gradients_again) = backwards(|| run(&modules, image, directed));
        let bits = |x: &Tensor| x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(bits(&values), bits(&again));
        for (i, module) in modules.iter().enumerate() {
            let [value, of_a, of_b] = by_hand(module, image, directed(i), weight(i));
            close(&values.get(i).unwrap(), &value, 1e-6);
            for (got, again, start, expected) in [
                (&gradients[i][0], &gradients_again[i][0], &module[4], of_a),
                (&gradients[i][1], &gradients_again[i][1], &module[5], of_b),
            ] {
                assert_eq!(bits(got), bits(again), "module {i}, {image:?}");
                close(got, &(start.to_dtype(DType::F64).unwrap() + expected).unwrap(), 1e-6);
            }
        }
    }
}

#[test]
fn what_does_not_fit_together_is_refused_or_left() {
    let [a, b, basis, c, of_a, of_b] = module([4, 9, 7, 5], 1);
    let add = |direction, gradients, image, bodies| {
        let module = Adapted { a: &a, b: &b, direction, weight: 1.0, gradients };
        with(bodies, || grouped::add(&[module], image))
    };
    let (whole, gradients) = (Some((&basis, &c)), [&of_a, &of_b]);
    assert!(add(whole, gradients, Image::Rest, Bodies::Shim).unwrap().is_some());
    for (direction, gradients, image) in [
        (whole, [&of_b, &of_a], Image::Rest),
        (Some((&basis, &of_a)), gradients, Image::Rest),
        (Some((&of_a, &c)), gradients, Image::Rest),
        (None, gradients, Image::Aligned),
    ] {
        assert!(add(direction, gradients, image, Bodies::Shim).is_err());
    }
    for bodies in [Bodies::Kernels, Bodies::Generic] {
        assert!(add(whole, gradients, Image::Rest, bodies).unwrap().is_none());
    }
    let half = of_a.to_dtype(DType::BF16).unwrap();
    assert!(add(whole, [&half, &of_b], Image::Rest, Bodies::Shim).unwrap().is_none());
    assert!(with(Bodies::Shim, || grouped::add(&[], Image::Rest)).unwrap().is_none());
}
